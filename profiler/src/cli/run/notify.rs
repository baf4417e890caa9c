//! Tells systemd, or whoever set `NOTIFY_SOCKET`, how the agent is: ready, reloading, stopping, alive.
//!
//! The protocol is a datagram of `KEY=value` lines (sd_notify(3)). Alive means that a new snapshot was
//! published, and nothing less: an agent that runs and measures nothing is not fed to the watchdog.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::clock::Timestamp;

/// Where news go; nowhere if nobody asked.
#[derive(Debug)]
pub(super) struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
    /// Within which time the watchdog wants to hear something, if it does.
    watchdog: Option<Duration>,
    alive: Option<Timestamp>,
    status: String,
}

impl Notifier {
    pub(super) fn from_env() -> Self {
        let to = env::var_os("NOTIFY_SOCKET").and_then(|place| {
            open(&place)
                .inspect_err(|error| log::warn!("NOTIFY_SOCKET={}: {error}", place.display()))
                .ok()
        });
        let number = |name| env::var(name).ok()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").map(Duration::from_micros);
        Self {
            watchdog: watchdog.filter(|_| ours && to.is_some()),
            to,
            alive: None,
            status: String::new(),
        }
    }

    /// Says what is wrong with a watchdog that is less patient than snapshots are frequent.
    pub(super) fn check_watchdog(&self, publish: Duration) {
        if let Some(watchdog) = self.watchdog
            && publish * 2 > watchdog
        {
            log::warn!(
                "WatchdogSec={} s is too short for a snapshot every {} s; lengthen it, or shorten \
                 intervals.publish_ms",
                watchdog.as_secs_f64(),
                publish.as_secs_f64()
            );
        }
    }

    pub(super) fn ready(&self) {
        self.send("READY=1");
    }

    /// To be followed by [`Self::ready`].
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    pub(super) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// The latest snapshot is of `published`; `status`: the agent in one line.
    pub(super) fn alive(&mut self, published: Timestamp, status: impl FnOnce() -> String) {
        if self.to.is_none() || self.alive.replace(published) == Some(published) {
            return;
        }
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
        let status = status();
        if self.status != status {
            self.send(&format!("STATUS={status}"));
            self.status = status;
        }
    }

    fn send(&self, text: &str) {
        // Who does not listen any more misses nothing that matters.
        if let Some((socket, to)) = &self.to
            && let Err(error) = socket.send_to_addr(text.as_bytes(), to)
        {
            log::debug!("NOTIFY_SOCKET: {error}");
        }
    }
}

fn open(place: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match place.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(place)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read holds up no measurement.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notifier(place: &OsStr) -> Notifier {
        Notifier {
            to: Some(open(place).unwrap()),
            watchdog: Some(Duration::from_secs(2)),
            alive: None,
            status: String::new(),
        }
    }

    fn next(listener: &UnixDatagram) -> String {
        let mut text = [0; 256];
        let length = listener.recv(&mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_socket_with_a_path_and_one_without_hear_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("perjoule-test-{}", std::process::id());
        let nameless = SocketAddr::from_abstract_name(&name).unwrap();
        for (listener, place) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into()),
            (
                UnixDatagram::bind_addr(&nameless).unwrap(),
                std::ffi::OsString::from(format!("@{name}")),
            ),
        ] {
            let told = notifier(&place);
            told.ready();
            assert_eq!(next(&listener), "READY=1");
            told.reloading();
            assert!(next(&listener).starts_with("RELOADING=1\nMONOTONIC_USEC="));
            told.stopping();
            assert_eq!(next(&listener), "STOPPING=1");
        }
        assert!(open(OsStr::new(&"x".repeat(200))).is_err());
    }

    #[test]
    fn the_watchdog_is_fed_by_a_new_snapshot_and_by_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut told = notifier(path.as_os_str());
        let fed = |told: &mut Notifier, published| {
            told.alive(Timestamp(published), || "1 service".to_owned());
            let mut heard = Vec::new();
            let mut text = [0; 64];
            while let Ok(length) = listener.recv(&mut text) {
                heard.push(String::from_utf8_lossy(&text[..length]).into_owned());
            }
            heard
        };
        assert_eq!(fed(&mut told, 1), ["WATCHDOG=1", "STATUS=1 service"]);
        assert_eq!(fed(&mut told, 1), [""; 0], "nothing was published");
        assert_eq!(fed(&mut told, 2), ["WATCHDOG=1"]);
    }
}
