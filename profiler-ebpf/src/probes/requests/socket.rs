//! What is read of a socket itself: `struct sock_common` at offsets from the kernel's own types.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use profiler_ebpf::ABSENT;

pub(super) const AF_UNIX: u16 = 1;
pub(super) const AF_INET: u16 = 2;
pub(super) const AF_INET6: u16 = 10;

#[unsafe(no_mangle)]
static SOCK_FAMILY: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static SOCK_STATE: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static SOCK_PORT: Global<u32> = Global::new(ABSENT);
/// These three may be absent; what they say is then 0.
#[unsafe(no_mangle)]
static SOCK_PEER_PORT: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static SOCK_NETWORK: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static NETWORK_NUMBER: Global<u32> = Global::new(ABSENT);

/// Where a `struct socket` has its `struct sock`.
#[unsafe(no_mangle)]
static SOCKET_SOCK: Global<u32> = Global::new(ABSENT);

/// A `struct sock`.
pub(super) trait Socket: Copy {
    /// Its address: an identity.
    fn key(self) -> u64;

    /// The member at `offset`.
    ///
    /// # Safety
    /// A member of that type lies there.
    unsafe fn member<T: Copy>(self, offset: u32) -> T;

    /// The `u32` at `offset` of what the pointer at `at` leads to.
    ///
    /// # Safety
    /// A pointer to a kernel structure lies at `at`, and a `u32` at `offset` of that.
    unsafe fn behind(self, at: u32, offset: u32) -> u32;

    /// The state of the connection (`TCP_*`).
    #[inline(always)]
    fn state(self) -> u8 {
        // SAFETY: `skc_state`; without its offset no program is loaded.
        unsafe { self.member(SOCK_STATE.load()) }
    }

    /// The address family (`AF_*`).
    #[inline(always)]
    fn family(self) -> u16 {
        // SAFETY: `skc_family`; without its offset no program is loaded.
        unsafe { self.member(SOCK_FAMILY.load()) }
    }

    /// Local port and peer's port, each 0 where there is none.
    #[inline(always)]
    fn ports(self, family: u16) -> (u16, u16) {
        if family != AF_INET && family != AF_INET6 {
            return (0, 0);
        }
        // SAFETY: `skc_num`; without its offset no program is loaded.
        let port = unsafe { self.member(SOCK_PORT.load()) };
        let peer = match SOCK_PEER_PORT.load() {
            ABSENT => 0,
            // SAFETY: `skc_dport`, in network order.
            offset => u16::from_be(unsafe { self.member(offset) }),
        };
        (port, peer)
    }

    /// The number of its network namespace, as `/proc/<pid>/ns/net` shows it; 0 if not known.
    #[inline(always)]
    fn network(self) -> u32 {
        match (SOCK_NETWORK.load(), NETWORK_NUMBER.load()) {
            (ABSENT, _) | (_, ABSENT) => 0,
            // SAFETY: `skc_net`, which leads to a `struct net`, and `ns.inum` there.
            (at, offset) => unsafe { self.behind(at, offset) },
        }
    }
}

/// A socket among a tracing program's own arguments: the verifier knows its type.
#[derive(Clone, Copy)]
pub(super) struct Trusted(*const u8);

impl Trusted {
    /// # Safety
    /// `sock` must be an argument of the program; then the verifier checks every offset.
    #[inline(always)]
    pub(super) unsafe fn new(sock: *const u8) -> Self {
        Self(sock)
    }

    /// The one behind a `struct socket`.
    ///
    /// # Safety
    /// `socket` must be an argument of the program.
    #[inline(always)]
    pub(super) unsafe fn behind_socket(socket: *const u8) -> Self {
        // SAFETY: the caller's promise; the verifier knows the types and handles a null.
        Self(unsafe { *socket.add(SOCKET_SOCK.load() as usize).cast::<*const u8>() })
    }
}

impl Socket for Trusted {
    #[inline(always)]
    fn key(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    unsafe fn member<T: Copy>(self, offset: u32) -> T {
        // SAFETY: the promises of `new` and of the caller.
        unsafe { *self.0.add(offset as usize).cast::<T>() }
    }

    #[inline(always)]
    unsafe fn behind(self, at: u32, offset: u32) -> u32 {
        // SAFETY: as above; the verifier knows what the pointer leads to.
        unsafe {
            let to: *const u8 = self.member(at);
            *to.add(offset as usize).cast::<u32>()
        }
    }
}

/// A socket's address that the verifier knows nothing of: every member is read with a check.
#[derive(Clone, Copy)]
pub(super) struct Untrusted(u64);

impl Untrusted {
    /// The `struct sock` at `address`.
    #[inline(always)]
    pub(super) fn new(address: u64) -> Self {
        Self(address)
    }

    /// The one behind the `struct socket` at `address`; `None` if there is none.
    #[inline(always)]
    pub(super) fn behind_socket(address: u64) -> Option<Self> {
        match read_kernel(address, SOCKET_SOCK.load()) {
            Some(0) | None => None,
            Some(sock) => Some(Self(sock)),
        }
    }
}

/// The value at `address + offset` of the kernel's memory; `None` if it is not there.
#[inline(always)]
pub(in crate::probes) fn read_kernel<T: Copy>(address: u64, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    let from = address.wrapping_add(u64::from(offset)) as *const c_void;
    // SAFETY: the helper checks `from`; the room is a whole `T`.
    unsafe {
        let to = value.as_mut_ptr().cast::<c_void>();
        if bpf_probe_read_kernel(to, size_of::<T>() as u32, from) != 0 {
            return None;
        }
        Some(value.assume_init())
    }
}

impl Socket for Untrusted {
    #[inline(always)]
    fn key(self) -> u64 {
        self.0
    }

    #[inline(always)]
    unsafe fn member<T: Copy>(self, offset: u32) -> T {
        // SAFETY: integers, for which zero is a value: what is not known.
        read_kernel(self.0, offset).unwrap_or(unsafe { MaybeUninit::zeroed().assume_init() })
    }

    #[inline(always)]
    unsafe fn behind(self, at: u32, offset: u32) -> u32 {
        // SAFETY: the caller's promise.
        let to: u64 = unsafe { self.member(at) };
        read_kernel(to, offset).unwrap_or(0)
    }
}
