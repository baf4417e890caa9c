//! Which pod's container has which GPU, as the kubelet of this node says.
//!
//! In: its `podresources` socket, `List` of API v1; nothing is asked of the cluster, and no right in it is
//! needed. Out: [`News`]. A thread of its own asks, every 15 s and when it is told that a pod
//! is new on a GPU; a kubelet that hangs holds up nobody else.

mod client;
mod messages;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::clock::Timestamp;
use crate::pods::GpuPod;

/// Where the kubelet listens, below the host's root.
const SOCKET: &str = "var/lib/kubelet/pod-resources/kubelet.sock";
/// Between two calls where nothing is new.
const PERIOD: Duration = Duration::from_secs(15);
/// Between two calls at least.
const SOONEST: Duration = Duration::from_secs(1);
/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two answers at most, where the kubelet answers.
pub const LONGEST_SILENCE: Duration = PERIOD.saturating_add(PATIENCE);

/// How one call ended.
#[derive(Debug)]
pub struct News {
    /// When.
    pub at: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// Who has which GPU, or why that is not known.
    pub gpus: Result<Vec<GpuPod>, String>,
}

/// The thread's other end. Dropping it ends the thread once its call has ended.
#[derive(Debug)]
pub struct Kubelet {
    ask: Sender<()>,
    news: Receiver<News>,
}

impl Kubelet {
    /// The socket of the machine whose root this is.
    pub fn socket(host_root: &Path) -> PathBuf {
        host_root.join(SOCKET)
    }

    /// Asks once, here; takes seconds at most.
    ///
    /// # Errors
    /// What the kubelet lacks, in words.
    pub fn list(socket: &Path) -> Result<Vec<GpuPod>, String> {
        // Lives for one call: nothing of one that was given up stays.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let answer = runtime.block_on(client::list(socket, PATIENCE));
        answer
            .map(messages::ListPodResourcesResponse::gpu_pods)
            .map_err(|error| error.to_string())
    }

    /// Starts the thread, which asks at once.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(socket: PathBuf) -> io::Result<Self> {
        let (ask, asked) = mpsc::channel();
        let (tell, news) = mpsc::channel();
        thread::Builder::new()
            .name("kubelet".into())
            .spawn(move || run(&socket, &asked, &tell))?;
        Ok(Self { ask, news })
    }

    /// Asks again soon: a pod is new on a GPU.
    pub fn ask(&self) {
        // A thread that has ended has nobody to tell it to.
        let _ = self.ask.send(());
    }

    /// The oldest news not yet taken.
    pub fn next(&self) -> Option<News> {
        self.news.try_recv().ok()
    }
}

fn run(socket: &Path, asked: &Receiver<()>, tell: &Sender<News>) {
    loop {
        let began = Instant::now();
        let gpus = Kubelet::list(socket);
        let news = News {
            at: Timestamp::now(),
            took: began.elapsed(),
            gpus,
        };
        if tell.send(news).is_err() {
            return;
        }
        match asked.recv_timeout(PERIOD) {
            Ok(()) => thread::sleep(SOONEST.saturating_sub(began.elapsed())),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // All who asked meanwhile get the same answer.
        while asked.try_recv().is_ok() {}
    }
}
