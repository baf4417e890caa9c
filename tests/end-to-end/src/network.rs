//! A network of a test's own.

use std::process::Command;
use std::thread;

/// Runs `inside` in a network namespace of its own, on a thread of its own.
///
/// # Panics
/// If there can be none, or `inside` panics.
pub fn in_another_network<T: Send>(inside: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let run = || {
            // SAFETY: only this thread's namespace changes.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "a namespace");
            let up = Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(up.expect("ip is installed").success());
            inside()
        };
        scope.spawn(run).join().expect("it does not panic")
    })
}
