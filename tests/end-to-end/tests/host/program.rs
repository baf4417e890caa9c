//! A program that does what a test knows: a child that makes plain system calls only, held until it
//! is let go. Between fork and exit it neither allocates nor takes a lock.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// The child's side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wire {
    gate: libc::c_int,
    tell: libc::c_int,
}

impl Wire {
    /// Waits to be let go: one read.
    pub(crate) fn wait(self) {
        let mut byte = 0_u8;
        // SAFETY: one byte of a live variable.
        unsafe { libc::read(self.gate, (&raw mut byte).cast(), 1) };
    }

    /// Tells the test a number: one write.
    pub(crate) fn tell(self, number: u64) {
        // SAFETY: the bytes of a live variable.
        unsafe { libc::write(self.tell, (&raw const number).cast(), 8) };
    }
}

/// The running child.
#[derive(Debug)]
pub(crate) struct Program {
    pid: libc::pid_t,
    gate: File,
    told: File,
}

impl Program {
    /// Starts `work` in a child, which ends with it.
    pub(crate) fn start(work: impl FnOnce(Wire)) -> Self {
        let (gate_out, gate_in) = pipe();
        let (told_out, told_in) = pipe();
        // SAFETY: the child makes only calls that are allowed between fork and exec.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            work(Wire {
                gate: gate_out.as_raw_fd(),
                tell: told_in.as_raw_fd(),
            });
            // SAFETY: no destructor of the parent's runs in the child.
            unsafe { libc::_exit(0) };
        }
        Self {
            pid,
            gate: File::from(gate_in),
            told: File::from(told_out),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid as u32
    }

    /// Ends one [`Wire::wait`].
    pub(crate) fn go(&mut self) {
        self.gate.write_all(&[1]).expect("the program reads");
    }

    /// What [`Wire::tell`] told.
    pub(crate) fn hear(&mut self) -> u64 {
        let mut number = [0; 8];
        self.told
            .read_exact(&mut number)
            .expect("the program tells");
        u64::from_ne_bytes(number)
    }

    /// Waits for its end.
    pub(crate) fn end(self) {
        let mut status = 0;
        // SAFETY: `status` is valid to write; the child is ours and nobody else waits for it.
        let ended = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        assert_eq!((ended, status), (self.pid, 0), "the program ends well");
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for both descriptors.
    let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
    assert_eq!(made, 0, "pipe2: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made them, and nobody else knows them.
    ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) }).into()
}
