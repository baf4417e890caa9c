//! A process beside the agent that opens connections inside other network namespaces.
//!
//! To enter a namespace takes `CAP_SYS_ADMIN`, which is nearly root's whole power. The agent gives it
//! up; this process keeps it, does nothing else, and reads nothing from a network. In: a process, the
//! number of its namespace, an address. Out: a connected socket, which stays in that namespace.

use std::cell::Cell;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    sockopt,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, move_into_link_name_space, set_capabilities,
    set_no_new_privs,
};

use super::Endpoint;
use super::scrape::ScrapeError;

/// What the process keeps: to enter a namespace, and to look up that of another user's process.
pub const CAPABILITIES: CapabilitySet = CapabilitySet::SYS_ADMIN.union(CapabilitySet::SYS_PTRACE);

/// How it is called in lists of processes.
const NAME: &std::ffi::CStr = c"perjoule-netns";
/// Beyond a connection's own limit, for the way there and back.
const LEEWAY: Duration = Duration::from_secs(1);

/// Number of the question, process, namespace, milliseconds; the address follows as text.
const HEAD: usize = 4 + 4 + 8 + 8;
/// Number of the question, what failed, the system's number of the error.
const ANSWER: usize = 4 + 4 + 4;
const LONGEST: usize = HEAD + 64;

const CONNECTED: u32 = 0;
const NO_NAMESPACE: u32 = 1;
const NO_CONNECTION: u32 = 2;

/// The agent's end. Dropping it ends the process.
#[derive(Debug)]
pub struct Broker {
    socket: OwnedFd,
    asked: Cell<u32>,
}

impl Broker {
    /// Starts the process, while this one still has what it takes. To be called before other
    /// threads do anything.
    ///
    /// # Errors
    /// There are no more descriptors or processes.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // SAFETY: the child uses its memory, its own end of the socket and system calls. No other
        // thread holds a lock that it takes: the allocator's are made free by fork(3) itself.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let Err(_) = serve(&theirs);
                // SAFETY: it ends this process at once, and nothing of the agent's is run for it.
                unsafe { libc::_exit(0) }
            }
            _ => Ok(Self {
                socket: ours,
                asked: Cell::new(0),
            }),
        }
    }

    /// A connection to the endpoint, made inside the namespace of process `pid`.
    pub(super) fn connect(
        &self,
        pid: u32,
        endpoint: &Endpoint,
        limit: Duration,
    ) -> Result<TcpStream, ScrapeError> {
        let number = self.asked.get().wrapping_add(1);
        self.asked.set(number);
        let mut question = Vec::with_capacity(LONGEST);
        question.extend(number.to_ne_bytes());
        question.extend(pid.to_ne_bytes());
        question.extend(endpoint.network.number.to_ne_bytes());
        question.extend((limit.as_millis() as u64).to_ne_bytes());
        question.extend(endpoint.address.to_string().into_bytes());
        let (failed, error, socket) = self
            .ask(number, &question, limit + LEEWAY)
            .map_err(ScrapeError::Namespace)?;
        let error = io::Error::from_raw_os_error(error);
        match (failed, socket) {
            (CONNECTED, Some(socket)) => Ok(socket.into()),
            (NO_CONNECTION, _) => Err(ScrapeError::Connect(error)),
            _ => Err(ScrapeError::Namespace(error)),
        }
    }

    fn ask(
        &self,
        number: u32,
        question: &[u8],
        limit: Duration,
    ) -> io::Result<(u32, i32, Option<OwnedFd>)> {
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(limit))?;
        send(&self.socket, question, None)?;
        loop {
            let mut answer = [0; ANSWER];
            let (length, socket) = receive(&self.socket, &mut answer)?;
            if length < ANSWER {
                return Err(io::Error::other("the process that enters them has ended"));
            }
            let [of, failed, error] = words(&answer);
            // An answer that nobody waited for any more lies before it.
            if of == number {
                return Ok((failed, error.cast_signed(), socket));
            }
        }
    }
}

fn words(answer: &[u8; ANSWER]) -> [u32; 3] {
    let mut words = [0; 3];
    for (word, bytes) in words.iter_mut().zip(answer.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}

fn send(socket: &OwnedFd, message: &[u8], with: Option<&TcpStream>) -> io::Result<()> {
    let descriptors = with.map(|with| [with.as_fd()]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptors) = &descriptors {
        // There is room for one.
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let message = [IoSlice::new(message)];
    sendmsg(socket, &message, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(socket: &OwnedFd, message: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut message = [IoSliceMut::new(message)];
    // A signal may end the wait where a time limit is set.
    let got =
        retry_on_intr(|| recvmsg(socket, &mut message, &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let mut descriptors = control.drain().filter_map(|control| match control {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let first = descriptors.next().and_then(|mut all| all.next());
    Ok((got.bytes, first))
}

/// Answers until the agent has gone.
fn serve(socket: &OwnedFd) -> io::Result<Infallible> {
    become_small(socket)?;
    let home = File::open("/proc/self/ns/net")?;
    loop {
        let mut question = [0; LONGEST];
        let (length, _) = receive(socket, &mut question)?;
        let question = question.get(..length).unwrap_or_default();
        let Some(question) = Question::parse(question) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let answer = question.connect(&home);
        let (failed, error) = match &answer {
            Ok(_) => (CONNECTED, 0),
            Err((failed, error)) => (*failed, error.raw_os_error().unwrap_or(libc::ETIMEDOUT)),
        };
        let words = [question.number, failed, error.cast_unsigned()];
        let message: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        send(socket, &message, answer.as_ref().ok())?;
    }
}

/// Lets go of everything but the socket and [`CAPABILITIES`]. Signals to the agent's whole group are
/// the agent's business: what it reads last it reads through here.
fn become_small(socket: &OwnedFd) -> io::Result<()> {
    rustix::thread::set_name(NAME)?;
    // Whoever reads what the agent prints must see its end.
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    drop(nothing);
    let keep = socket.as_raw_fd().cast_unsigned();
    for (first, last) in [(3, keep.saturating_sub(1)), (keep + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: this process uses no other descriptor of those it was made with; the values
            // that own them are the agent's and are never dropped here.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: to ignore a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let held = rustix::thread::capabilities(None)?.permitted & CAPABILITIES;
    set_capabilities(
        None,
        CapabilitySets {
            effective: held,
            permitted: held,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    set_no_new_privs(true)?;
    Ok(())
}

/// What the agent wants.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    number: u32,
    pid: u32,
    namespace: u64,
    limit: Duration,
    address: SocketAddr,
}

impl Question {
    fn parse(message: &[u8]) -> Option<Self> {
        let (number, rest) = message.split_first_chunk()?;
        let (pid, rest) = rest.split_first_chunk()?;
        let (namespace, rest) = rest.split_first_chunk()?;
        let (millis, address) = rest.split_first_chunk()?;
        Some(Self {
            number: u32::from_ne_bytes(*number),
            pid: u32::from_ne_bytes(*pid),
            namespace: u64::from_ne_bytes(*namespace),
            limit: Duration::from_millis(u64::from_ne_bytes(*millis)),
            address: str::from_utf8(address).ok()?.parse().ok()?,
        })
    }

    fn connect(&self, home: &File) -> Result<TcpStream, (u32, io::Error)> {
        let no_namespace = |error| (NO_NAMESPACE, error);
        let there = self.namespace().map_err(no_namespace)?;
        enter(&there).map_err(no_namespace)?;
        let stream = TcpStream::connect_timeout(&self.address, self.limit);
        // A namespace lives as long as somebody is in it.
        enter(home).map_err(no_namespace)?;
        stream.map_err(|error| (NO_CONNECTION, error))
    }

    /// The process's network namespace, if it still is the one of this number: a process's number
    /// may be another's by now.
    fn namespace(&self) -> io::Result<File> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid))?;
        if namespace.metadata()?.ino() != self.namespace {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        Ok(namespace)
    }
}

fn enter(namespace: &File) -> io::Result<()> {
    let network = Some(LinkNameSpaceType::Network);
    Ok(move_into_link_name_space(namespace.as_fd(), network)?)
}
