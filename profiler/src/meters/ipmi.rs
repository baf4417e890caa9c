//! The machine's power as its management controller (BMC) measures it: a node meter.
//!
//! In: `/dev/ipmi0`. Out: a reading every five seconds, from a thread of its own: a BMC answers
//! within milliseconds, or seconds, or not at all, and fails now and then.
//!
//! Source: `include/uapi/linux/ipmi.h`; the message itself is [`dcmi`]'s.

mod dcmi;
mod device;

use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use super::News;
use super::node::NodeMeter;
use super::source::{Deaf, Feed, Health, Running, Stop};
use crate::clock::Timestamp;
use crate::units::Watts;

/// Between two readings.
const EVERY: Duration = Duration::from_secs(5);
/// Readings further apart are not joined: one may fail.
const LONGEST: Duration = Duration::from_secs(16);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Nothing states a BMC's accuracy.
const GAIN_ERROR: f64 = 0.1;
const DEVICE: &str = "dcmi";

/// Why a BMC's power reading cannot be had.
#[derive(Debug, Error)]
pub enum Unavailable {
    /// The machine has no BMC, or its driver is not loaded.
    #[error("no {0}")]
    Absent(String),
    /// The device cannot be used.
    #[error("{device}: {error}")]
    Device {
        /// Which.
        device: String,
        /// Why.
        error: io::Error,
    },
    /// The BMC answers, and shows no power.
    #[error("{0}")]
    NoPower(#[from] dcmi::Refusal),
}

/// Whoever answers to IPMI messages.
trait Bmc: Send {
    /// Sends a request and waits for its answer, completion code first.
    fn ask(
        &mut self,
        function: u8,
        command: u8,
        data: &[u8],
        patience: Duration,
    ) -> io::Result<Vec<u8>>;
}

/// A BMC that shows power.
pub struct Controller(Box<dyn Bmc>);

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Controller")
    }
}

impl Controller {
    /// Opens the device (`/dev/ipmi0`) and asks once. Takes two seconds at most.
    ///
    /// # Errors
    /// [`Unavailable`] with the reason.
    pub fn open(path: &Path) -> Result<Self, Unavailable> {
        let name = path.display().to_string();
        let device = device::Device::open(path).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Unavailable::Absent(name.clone()),
            _ => Unavailable::Device {
                device: name.clone(),
                error,
            },
        })?;
        let mut controller = Self(Box::new(device));
        match controller.watts() {
            Ok(_) => Ok(controller),
            Err(Failure::Refused(refusal)) => Err(refusal.into()),
            Err(Failure::Device(error)) => Err(Unavailable::Device {
                device: name,
                error,
            }),
        }
    }

    fn watts(&mut self) -> Result<Watts, Failure> {
        let answer = self
            .0
            .ask(dcmi::FUNCTION, dcmi::COMMAND, &dcmi::REQUEST, PATIENCE)?;
        Ok(Watts(f64::from(dcmi::parse(&answer)?)))
    }

    /// Starts the thread.
    pub(super) fn start(self, running: &mut Running, feed: Feed) -> io::Result<()> {
        running.spawn("ipmi", move |stop| {
            // Nobody listens any more: the agent has gone, and so may this thread.
            let _ = self.run(EVERY, &feed, &stop);
        })
    }

    fn run(mut self, every: Duration, feed: &Feed, stop: &Stop) -> Result<(), Deaf> {
        let mut health = Health::seldom("ipmi", every);
        let mut meter = NodeMeter::new(DEVICE, LONGEST, GAIN_ERROR);
        let mut next = Timestamp::now();
        loop {
            let start = Timestamp::now();
            let read = self.watts();
            let end = Timestamp::now();
            health.called(start, end, read.is_ok());
            match read {
                Ok(power) => {
                    feed.news(News::Node(meter.power(end, power)))?;
                    health.is(None);
                }
                Err(error) => health.is(Some(error.to_string())),
            }
            feed.health(&mut health)?;
            next = next.plus(every).max(Timestamp::now());
            if stop.wait_until(next) {
                return Ok(());
            }
        }
    }
}

/// Why one reading failed.
#[derive(Debug, Error)]
enum Failure {
    #[error("the BMC does not answer: {0}")]
    Device(#[from] io::Error),
    #[error(transparent)]
    Refused(#[from] dcmi::Refusal),
}

impl Unavailable {
    /// True if nothing is wrong with the machine.
    pub fn is_absent(&self) -> bool {
        match self {
            Self::Absent(_) | Self::NoPower(_) => true,
            Self::Device { error, .. } => error.kind() == ErrorKind::PermissionDenied,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::mpsc;

    use super::*;

    /// Answers what it was told to, in turn.
    struct Scripted(VecDeque<io::Result<Vec<u8>>>);

    impl Bmc for Scripted {
        fn ask(
            &mut self,
            function: u8,
            command: u8,
            data: &[u8],
            _: Duration,
        ) -> io::Result<Vec<u8>> {
            assert_eq!(
                (function, command, data),
                (0x2c, 0x02, &[0xdc, 1, 0, 0][..])
            );
            self.0
                .pop_front()
                .unwrap_or_else(|| Err(ErrorKind::TimedOut.into()))
        }
    }

    #[test]
    fn a_bmc_that_fails_once_leaves_no_hole_and_is_told() {
        let watts = |watts: u16| {
            let [low, high] = watts.to_le_bytes();
            Ok(vec![
                0, 0xdc, low, high, 1, 0, 2, 0, 3, 0, 0, 0, 0, 0, 0xe8, 3, 0, 0, 0x40,
            ])
        };
        let script = [watts(500), Ok(vec![0xc0]), watts(500)];
        let controller = Controller(Box::new(Scripted(script.into())));
        let (sender, news) = mpsc::channel();
        let mut running = Running::default();
        running
            .spawn("ipmi", move |stop| {
                let _ = controller.run(Duration::from_millis(50), &Feed(sender), &stop);
            })
            .unwrap();
        let mut readings = Vec::new();
        let mut error = None;
        while readings.len() < 2 {
            match news.recv_timeout(Duration::from_secs(10)).unwrap() {
                News::Node(reading) => readings.push(reading),
                News::State(state) => error = error.or(state.error),
                _ => {}
            }
        }
        assert!(error.is_some_and(|error| error.contains("busy")));
        let length = readings[1].at.seconds_since(readings[0].at);
        assert!(length >= 0.1, "{length} s");
        assert!((readings[1].energy.joules().0 - 500.0 * length).abs() < 1e-3);
        assert_eq!(readings[1].gap, Duration::ZERO);
        assert!(running.stop().is_empty());
    }

    #[test]
    fn a_machine_without_a_bmc_has_none_and_nothing_is_wrong() {
        let error = Controller::open(Path::new("/nonexistent/ipmi0")).unwrap_err();
        assert_eq!(error.to_string(), "no /nonexistent/ipmi0");
        assert!(error.is_absent());
        // Something else that can be opened is no BMC, and says so.
        let error = Controller::open(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, Unavailable::Device { .. }), "{error}");
        assert!(!error.is_absent());
    }
}
