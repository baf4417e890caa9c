//! Following what services move through io_urings: programs at the rings' completions, loaded and
//! attached when a service first moves bytes of a socket through one.

use profiler_ebpf::io_uring::{FOLLOWED, SEEN};

use super::tiers::field;
use crate::probes::load_error::ProbeError;
use crate::probes::loader::{Field, Hook, Loader};
use crate::probes::shared_memory::SharedMemory;

const RINGS: &str = "REQUEST_RINGS";

/// What begins requests comes last: the other is then there to end them.
const PROGRAMS: &[&str] = &["io_uring_sent", "io_uring_received"];

/// A completion names its request since Linux 5.18; these members, as they lie, are of 6.0.
pub(super) const FIELDS: &[Field] = &[
    field("TASK_IO_URING", "task_struct", "io_uring", &[]),
    field("TASK_WORKER", "task_struct", "worker_private", PROGRAMS),
    field("RING_FILE", "io_kiocb", "file", PROGRAMS),
    field("RING_OPCODE", "io_kiocb", "opcode", PROGRAMS),
    field("RING_RESULT", "io_kiocb", "cqe.res", PROGRAMS),
    field("RING_FLAGS", "io_kiocb", "cqe.flags", PROGRAMS),
    field("RING_COMMAND", "io_kiocb", "cmd", PROGRAMS),
    field("MESSAGE_BUFFER", "io_sr_msg", "buf", PROGRAMS),
    field("MESSAGE_DONE", "io_sr_msg", "done_io", PROGRAMS),
    field("MESSAGE_FLAGS", "io_sr_msg", "msg_flags", PROGRAMS),
    field("MESSAGE_MODE", "io_sr_msg", "flags", PROGRAMS),
    field("TRANSFER_BUFFER", "io_rw", "addr", PROGRAMS),
    field("TRANSFER_LENGTH", "io_rw", "len", PROGRAMS),
];

/// Whether rings' completions are followed.
#[derive(Debug)]
pub(super) struct Rings {
    shared: SharedMemory,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not needed so far.
    Waiting,
    Followed,
    /// The kernel does not allow it.
    Refused,
}

impl Rings {
    pub(super) fn new(loader: &Loader) -> Result<Self, ProbeError> {
        Ok(Self {
            shared: loader.shared_bytes(RINGS)?,
            state: State::Waiting,
        })
    }

    /// Attaches the programs if a ring was seen at work on a service's socket.
    pub(super) fn follow(&mut self, loader: &mut Loader) {
        let seen = self.shared.word(0, SEEN).is_some_and(|seen| seen != 0);
        if self.state != State::Waiting || !seen {
            return;
        }
        self.state = match attach(loader) {
            Ok(()) => {
                self.shared.set_byte(FOLLOWED, 1);
                log::info!("requests: a service uses an io_uring; its completions are followed");
                State::Followed
            }
            Err(error) => {
                log::warn!("requests through an io_uring are not seen: {error}");
                State::Refused
            }
        };
        loader.settle();
    }

    /// Takes the programs off.
    pub(super) fn release(&mut self, loader: &mut Loader) {
        if self.state == State::Followed {
            self.shared.set_byte(FOLLOWED, 0);
            release(loader);
            self.state = State::Waiting;
        }
    }
}

/// Attaches all or none.
fn attach(loader: &mut Loader) -> Result<(), ProbeError> {
    for (place, program) in PROGRAMS.iter().enumerate() {
        if let Err(error) = loader.attach(program, Hook::BtfTracepoint("io_uring_complete")) {
            PROGRAMS
                .iter()
                .take(place)
                .for_each(|program| loader.detach(program));
            return Err(error);
        }
    }
    Ok(())
}

fn release(loader: &mut Loader) {
    for program in PROGRAMS {
        loader.release(program);
    }
}
