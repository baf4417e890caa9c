//! Which stack the kernel gives programs, from the machine code it made of them.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd as _};

use end_to_end::Programs;

/// The machine code of a loaded program, its functions one behind the other.
fn machine_code(program: &aya::programs::ProgramInfo) -> Vec<u8> {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    let mut code = vec![0u8; 1 << 17];
    // `struct bpf_prog_info`: the length at byte 16, the address at byte 24.
    let mut info = [0u64; 29];
    info[2] = code.len() as u64;
    info[3] = code.as_mut_ptr() as u64;
    let fd = program.fd().expect("a descriptor");
    let attributes = [
        fd.as_fd().as_raw_fd() as u64 | (size_of_val(&info) as u64) << 32,
        info.as_mut_ptr() as u64,
    ];
    // SAFETY: bpf(2) with the attributes of this command; both buffers live until it returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    code.truncate(info[2] as u32 as usize);
    code
}

/// `add r9, gs:[…]`: how the kernel's compiler finds a per-CPU stack on x86-64.
const PER_CPU_STACK: [u8; 5] = [0x65, 0x4c, 0x03, 0x0c, 0x25];

/// The programs that were loaded since, by the names that the kernel keeps, and whether each has a
/// per-CPU stack.
pub(crate) fn with_per_cpu_stacks(before: &Programs) -> HashMap<String, bool> {
    let mut per_cpu = HashMap::new();
    for program in aya::programs::loaded_programs().filter_map(Result::ok) {
        if before.holds(program.id()) {
            continue;
        }
        let code = machine_code(&program);
        let name = String::from_utf8_lossy(program.name()).into_owned();
        let has = code.windows(5).any(|window| window == PER_CPU_STACK);
        per_cpu.insert(name, has);
    }
    per_cpu
}
