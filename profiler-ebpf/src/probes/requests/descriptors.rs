//! From a descriptor of the running process to the socket or device behind it, through the kernel's own
//! tables, at offsets from the kernel's own types.

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_get_current_task;
use profiler_ebpf::ABSENT;

use super::socket::{Socket as _, Untrusted, read_kernel};

#[unsafe(no_mangle)]
static TASK_FILES: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static FILES_TABLE: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static TABLE_LENGTH: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static TABLE_FILES: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static FILE_INODE: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static FILE_PRIVATE: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static INODE_MODE: Global<u32> = Global::new(ABSENT);

#[unsafe(no_mangle)]
static INODE_DEVICE: Global<u32> = Global::new(ABSENT);

const S_IFMT: u16 = 0xf000;
const S_IFSOCK: u16 = 0xc000;

/// True if the running process's descriptor is this socket. A function of its own: it is asked in
/// many places, and seldom.
#[inline(never)]
pub(super) fn leads_to(descriptor: u64, socket: u64) -> bool {
    socket_of(descriptor).is_some_and(|found| found.key() == socket)
}

/// True if the running process's descriptor is a socket; false also where this kernel's files are not
/// known.
#[inline(always)]
pub(in crate::probes) fn is_socket(descriptor: u64) -> bool {
    if INODE_MODE.load() == ABSENT || FILE_INODE.load() == ABSENT || TABLE_FILES.load() == ABSENT {
        return false;
    }
    let mode = |descriptor| -> Option<u16> {
        let inode = read_kernel(file_of(descriptor)?, FILE_INODE.load())?;
        read_kernel(inode, INODE_MODE.load())
    };
    mode(descriptor).is_some_and(|mode| mode & S_IFMT == S_IFSOCK)
}

/// The socket behind a descriptor of the running process; `None` for any other file.
#[inline(always)]
pub(super) fn socket_of(descriptor: u64) -> Option<Untrusted> {
    socket_of_file(file_of(descriptor)?)
}

/// The device that a descriptor of the running process stands for, as `dev_t`; 0 for other files.
#[inline(never)]
pub(in crate::probes) fn device_of(descriptor: u64) -> Option<u32> {
    if INODE_DEVICE.load() == ABSENT {
        return None;
    }
    let inode = read_kernel(file_of(descriptor)?, FILE_INODE.load())?;
    read_kernel(inode, INODE_DEVICE.load())
}

/// The address of the `struct file` behind a descriptor of the running process.
#[inline(always)]
fn file_of(descriptor: u64) -> Option<u64> {
    // The upper half of the register is not the caller's.
    let descriptor = descriptor & 0xffff_ffff;
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let files = read_kernel(task, TASK_FILES.load())?;
    let table = read_kernel(files, FILES_TABLE.load())?;
    let length: u32 = read_kernel(table, TABLE_LENGTH.load())?;
    if descriptor >= u64::from(length) {
        return None;
    }
    let first: u64 = read_kernel(table, TABLE_FILES.load())?;
    read_kernel(first.wrapping_add(descriptor * 8), 0)
}

/// The socket behind the `struct file` at this address; `None` for any other file.
#[inline(always)]
pub(super) fn socket_of_file(file: u64) -> Option<Untrusted> {
    let inode = read_kernel(file, FILE_INODE.load())?;
    let mode: u16 = read_kernel(inode, INODE_MODE.load())?;
    if mode & S_IFMT != S_IFSOCK {
        return None;
    }
    Untrusted::behind_socket(read_kernel(file, FILE_PRIVATE.load())?)
}
