//! A sign of life on long work: how much of the files was read. On stderr, where that is a terminal, from half a
//! second on; without colours.

use std::fs;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use procfs::process::Process;

/// What is done by then was not long.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two looks.
const PERIOD: Duration = Duration::from_millis(100);

/// What is shown until this is dropped.
#[derive(Debug, Default)]
pub(super) struct Progress {
    shown: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Of reading these files, each as often as is said beside it.
    pub(super) fn of(files: &[(&Path, u64)]) -> Self {
        if !io::stderr().is_terminal() {
            return Self::default();
        }
        let length = |(file, times): &(&Path, u64)| {
            let length = fs::metadata(file).map_or(0, |known| known.len());
            length.saturating_mul(*times)
        };
        let bytes = files.iter().map(length).sum();
        let (end, ended) = mpsc::channel();
        let show = move || {
            let before = bytes_read();
            if ended.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
            let style = "{spinner} reading {bar:30} {bytes} of {total_bytes}, {elapsed}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            while ended.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                // Pages that are read twice do not make it more than it is.
                bar.set_position(bytes_read().saturating_sub(before).min(bytes));
                bar.tick();
            }
            bar.finish_and_clear();
        };
        // Without a thread for it there is only no sign.
        let thread = thread::Builder::new().name("progress".into()).spawn(show);
        Self {
            shown: thread.ok().map(|thread| (end, thread)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.shown.take() {
            drop(end);
            // One that failed has shown nothing more.
            let _ = thread.join();
        }
    }
}

/// By this process so far, from files and else.
fn bytes_read() -> u64 {
    let io = Process::myself().and_then(|process| process.io());
    io.map_or(0, |io| io.rchar)
}
