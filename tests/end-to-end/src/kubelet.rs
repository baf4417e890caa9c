//! A kubelet's `podresources` socket, as far as it goes: one answer to `List`, or one of the ways in
//! which a kubelet fails.

use std::convert::Infallible;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response};
use prost::Message;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

/// Where a kubelet listens, below the root of its machine.
pub const SOCKET: &str = "var/lib/kubelet/pod-resources/kubelet.sock";

/// `v1.ListPodResourcesResponse`, with the fields that a real one also sends.
#[derive(Clone, PartialEq, Message)]
pub struct List {
    /// All pods of the node.
    #[prost(message, repeated, tag = "1")]
    pub pods: Vec<Pod>,
}

/// `v1.PodResources`.
#[derive(Clone, PartialEq, Message)]
pub struct Pod {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Its containers.
    #[prost(message, repeated, tag = "3")]
    pub containers: Vec<Container>,
}

/// `v1.ContainerResources`.
#[derive(Clone, PartialEq, Message)]
pub struct Container {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Of device plugins.
    #[prost(message, repeated, tag = "2")]
    pub devices: Vec<Devices>,
    /// CPUs of its own.
    #[prost(int64, repeated, tag = "3")]
    pub cpu_ids: Vec<i64>,
    /// Of claims (DRA); a kubelet before 1.27 has no such field.
    #[prost(message, repeated, tag = "5")]
    pub claims: Vec<Claim>,
}

/// `v1.ContainerDevices`.
#[derive(Clone, PartialEq, Message)]
pub struct Devices {
    /// What was asked for.
    #[prost(string, tag = "1")]
    pub resource: String,
    /// What was given.
    #[prost(string, repeated, tag = "2")]
    pub ids: Vec<String>,
    /// Where they are.
    #[prost(message, optional, tag = "3")]
    pub topology: Option<Topology>,
}

/// `v1.TopologyInfo`, and its nodes with their numbers alone.
#[derive(Clone, PartialEq, Message)]
pub struct Topology {
    /// NUMA nodes.
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<Node>,
}

/// `v1.NUMANode`.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// Its number.
    #[prost(int64, tag = "1")]
    pub id: i64,
}

/// `v1.DynamicResource`.
#[derive(Clone, PartialEq, Message)]
pub struct Claim {
    /// Until 1.30.
    #[prost(string, tag = "1")]
    pub class: String,
    /// The claim's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// What it gave.
    #[prost(message, repeated, tag = "4")]
    pub resources: Vec<ClaimResource>,
}

/// `v1.ClaimResource`.
#[derive(Clone, PartialEq, Message)]
pub struct ClaimResource {
    /// As CDI calls them.
    #[prost(message, repeated, tag = "1")]
    pub cdi: Vec<Cdi>,
    /// Since 1.31, as is all below.
    #[prost(string, tag = "2")]
    pub driver: String,
    /// The driver's pool.
    #[prost(string, tag = "3")]
    pub pool: String,
    /// The device in it.
    #[prost(string, tag = "4")]
    pub device: String,
}

/// `v1.CDIDevice`.
#[derive(Clone, PartialEq, Message)]
pub struct Cdi {
    /// `vendor/class=name`.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// What the socket does with a call.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Answers it.
    List(List),
    /// Answers with these bytes for a message.
    Message(Vec<u8>),
    /// Promises more than it sends, and ends.
    Cut,
    /// Ends it with gRPC's status 7.
    Refuse,
    /// Answers as a web server.
    NotGrpc,
    /// Speaks HTTP/2 and never answers.
    Hang,
    /// Accepts, and says nothing at all.
    Mute,
    /// Says something that is no HTTP/2.
    Noise,
}

/// A machine's root with such a socket; it goes with it.
#[derive(Debug)]
pub struct Kubelet {
    root: tempfile::TempDir,
    answer: Arc<Mutex<Answer>>,
    calls: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Kubelet {
    /// Listens.
    ///
    /// # Panics
    /// If it cannot.
    pub fn start(answer: Answer) -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let socket = root.path().join(SOCKET);
        std::fs::create_dir_all(socket.parent().expect("a folder")).expect("a folder");
        let answer = Arc::new(Mutex::new(answer));
        let calls = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = oneshot::channel();
        let listener = std::os::unix::net::UnixListener::bind(socket).expect("a socket");
        listener.set_nonblocking(true).expect("a listener");
        let (told, counted) = (Arc::clone(&answer), Arc::clone(&calls));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, told, counted) => {}
                }
            });
        });
        Self {
            root,
            answer,
            calls,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The root of its machine.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.root().join(SOCKET)
    }

    /// How often it was called.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// What it does from now on.
    pub fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: std::os::unix::net::UnixListener,
    answer: Arc<Mutex<Answer>>,
    calls: Arc<AtomicUsize>,
) {
    let listener = UnixListener::from_std(listener).expect("a listener");
    while let Ok((stream, _)) = listener.accept().await {
        calls.fetch_add(1, Ordering::Relaxed);
        let answer = answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        tokio::spawn(async move {
            // A client that gives up is not the server's failure.
            let _ = serve(stream, answer).await;
        });
    }
}

async fn serve(mut stream: UnixStream, answer: Answer) -> Result<(), h2::Error> {
    match answer {
        Answer::Mute => return pending().await,
        Answer::Noise => {
            let _ = stream.write_all(&[0x5a; 4096]).await;
            return Ok(());
        }
        _ => {}
    }
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        assert_eq!(request.uri().path(), "/v1.PodResourcesLister/List");
        let answer = answer.clone();
        tokio::spawn(async move {
            let _ = reply(respond, answer).await;
        });
    }
    Ok(())
}

async fn reply(mut respond: SendResponse<Bytes>, answer: Answer) -> Result<(), h2::Error> {
    let head = |kind: &'static str| {
        let response = Response::builder().header("content-type", kind);
        response.body(()).expect("a response")
    };
    let message = match answer {
        Answer::List(list) => list.encode_to_vec(),
        Answer::Message(bytes) => bytes,
        Answer::Cut => {
            let mut body = respond.send_response(head("application/grpc"), false)?;
            body.send_data(Bytes::from_static(&[0, 0, 0, 1, 0, 7]), true)?;
            return Ok(());
        }
        Answer::Refuse => {
            let mut refused = head("application/grpc");
            refused
                .headers_mut()
                .insert("grpc-status", HeaderValue::from_static("7"));
            let why = HeaderValue::from_static("not for you");
            refused.headers_mut().insert("grpc-message", why);
            respond.send_response(refused, true)?;
            return Ok(());
        }
        Answer::NotGrpc => {
            let mut body = respond.send_response(head("text/html"), false)?;
            body.send_data(Bytes::from_static(b"<html>"), true)?;
            return Ok(());
        }
        Answer::Hang | Answer::Mute | Answer::Noise => return pending().await,
    };
    let mut framed = vec![0];
    framed.extend(
        u32::try_from(message.len())
            .expect("a short message")
            .to_be_bytes(),
    );
    framed.extend(message);
    let mut body = respond.send_response(head("application/grpc"), false)?;
    body.send_data(framed.into(), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    body.send_trailers(trailers)
}
