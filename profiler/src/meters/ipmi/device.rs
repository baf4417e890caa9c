//! `/dev/ipmi0`: a message goes in by one ioctl, its answer comes out by another once the
//! descriptor is readable.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Bmc;

const SYSTEM_INTERFACE: libc::c_int = 0x0c;
const BMC_CHANNEL: libc::c_short = 0x0f;
const RESPONSE: libc::c_int = 1;
/// IPMI messages are shorter (`IPMI_MAX_MSG_LENGTH`).
const LONGEST: usize = 272;
/// `_IOR('i', 13, struct ipmi_req)`
const SEND_COMMAND: u64 = request(2, 13, size_of::<Request>());
/// `_IOWR('i', 11, struct ipmi_recv)`
const RECEIVE_TRUNCATED: u64 = request(3, 11, size_of::<Received>());

/// The kernel's `_IOC`: direction, size, type `i`, number.
const fn request(direction: u64, number: u64, size: usize) -> u64 {
    (direction << 30) | ((size as u64) << 16) | ((b'i' as u64) << 8) | number
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Address {
    kind: libc::c_int,
    channel: libc::c_short,
    unit: u8,
    /// The kernel may write an address of any kind, up to this length.
    rest: [u8; 33],
}

/// The management controller of this machine.
const CONTROLLER: Address = Address {
    kind: SYSTEM_INTERFACE,
    channel: BMC_CHANNEL,
    unit: 0,
    rest: [0; 33],
};
const SYSTEM_ADDRESS_LENGTH: u32 = 8;

#[repr(C)]
#[derive(Debug)]
struct Message {
    function: u8,
    command: u8,
    length: u16,
    data: *mut u8,
}

#[repr(C)]
#[derive(Debug)]
struct Request {
    address: *mut Address,
    address_length: u32,
    id: libc::c_long,
    message: Message,
}

#[repr(C)]
#[derive(Debug)]
struct Received {
    kind: libc::c_int,
    address: *mut Address,
    address_length: u32,
    id: libc::c_long,
    message: Message,
}

/// The open device.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    latest: libc::c_long,
}

impl Device {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file, latest: 0 })
    }

    fn send(&mut self, function: u8, command: u8, data: &[u8]) -> io::Result<()> {
        self.latest = self.latest.wrapping_add(1);
        let mut data = data.to_vec();
        let mut address = CONTROLLER;
        let request = Request {
            address: &raw mut address,
            address_length: SYSTEM_ADDRESS_LENGTH,
            id: self.latest,
            message: Message {
                function,
                command,
                length: data.len() as u16,
                data: data.as_mut_ptr(),
            },
        };
        // SAFETY: the kernel reads `request`, `address_length` bytes at `address` and `length` at
        // `data`, all of which live until the call returns; it keeps none of the pointers.
        let sent = unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                SEND_COMMAND as libc::Ioctl,
                &raw const request,
            )
        };
        result(sent)
    }

    /// The oldest message that waits: its kind, id and data.
    fn receive(&self) -> io::Result<(libc::c_int, libc::c_long, Vec<u8>)> {
        let mut data = [0; LONGEST];
        let mut address = CONTROLLER;
        let mut received = Received {
            kind: 0,
            address: &raw mut address,
            address_length: size_of::<Address>() as u32,
            id: 0,
            message: Message {
                function: 0,
                command: 0,
                length: LONGEST as u16,
                data: data.as_mut_ptr(),
            },
        };
        // SAFETY: the kernel writes `received`, at most `address_length` bytes at `address` and at
        // most `length` at `data`, all of which live until the call returns.
        let taken = unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                RECEIVE_TRUNCATED as libc::Ioctl,
                &raw mut received,
            )
        };
        result(taken)?;
        let length = usize::from(received.message.length);
        let data = data.get(..length).unwrap_or_default().to_vec();
        Ok((received.kind, received.id, data))
    }

    fn wait(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let millis = left.as_millis().min(60_000) as libc::c_int;
        // SAFETY: `poll` is one valid entry, and the count says one.
        match unsafe { libc::poll(&raw mut poll, 1, millis) } {
            0 => Err(ErrorKind::TimedOut.into()),
            ready => result(ready.min(0)),
        }
    }
}

fn result(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

impl Bmc for Device {
    fn ask(
        &mut self,
        function: u8,
        command: u8,
        data: &[u8],
        patience: Duration,
    ) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + patience;
        self.send(function, command, data)?;
        loop {
            match self.wait(deadline).and_then(|()| self.receive()) {
                // Others may be answers to earlier requests that nobody waited for any longer.
                Ok((RESPONSE, id, data)) if id == self.latest => return Ok(data),
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
            if Instant::now() >= deadline {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_that_the_kernel_knows() {
        // As `strace ipmitool` shows them on x86-64.
        if size_of::<libc::c_long>() == 8 {
            assert_eq!(SEND_COMMAND, 0x8028_690d);
            assert_eq!(RECEIVE_TRUNCATED, 0xc030_690b);
        }
    }
}
