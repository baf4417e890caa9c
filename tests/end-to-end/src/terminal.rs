//! A terminal with a program in it, as an SSH session has one: a pseudoterminal, and what a VT100 would show.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use vt100::{Parser, Screen};

use crate::scaled;

/// A running program and its screen; ends with this value.
pub struct Terminal {
    child: Child,
    keys: File,
    /// The program's end, so that its settings can be read when it has ended.
    line: OwnedFd,
    before: libc::termios,
    emulator: Arc<Mutex<Parser>>,
}

impl Terminal {
    /// Starts a command on a terminal of so many columns and rows.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(mut command: Command, columns: u16, rows: u16) -> Self {
        let (mut master, mut slave) = (0, 0);
        let mut size = size(columns, rows);
        // SAFETY: both descriptors are written by the call; no name and no settings are asked for; the
        // size is read.
        let failed = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                std::ptr::null_mut(),
                std::ptr::null(),
                &raw mut size,
            )
        };
        assert_eq!(failed, 0, "openpty: {}", io::Error::last_os_error());
        // SAFETY: openpty has just opened both for nobody else.
        let (keys, line) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        let end = || Stdio::from(line.try_clone().expect("a descriptor"));
        command
            .env("TERM", "xterm-256color")
            .stdin(end())
            .stdout(end())
            .stderr(end());
        // SAFETY: setsid and ioctl are single system calls, allowed between fork and exec; standard input is
        // the terminal by then.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let before = settings(&line);
        let child = command.spawn().expect("it can be started");
        let emulator = Arc::new(Mutex::new(Parser::new(number(rows), number(columns), 0)));
        let mut shown = keys.try_clone().expect("a descriptor");
        let screen = Arc::clone(&emulator);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = shown.read(&mut bytes) {
                lock(&screen).process(&bytes[..length]);
            }
        });
        Self {
            child,
            keys,
            line,
            before,
            emulator,
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What is on the screen.
    pub fn text(&self) -> String {
        self.screen(Screen::contents)
    }

    /// Looks at the screen.
    pub fn screen<T>(&self, look: impl FnOnce(&Screen) -> T) -> T {
        look(lock(&self.emulator).screen())
    }

    /// Types.
    ///
    /// # Panics
    /// If the terminal is gone.
    pub fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("a terminal");
    }

    /// Changes its size.
    ///
    /// # Panics
    /// If it cannot be changed.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        lock(&self.emulator).set_size(number(rows), number(columns));
        let size = size(columns, rows);
        // SAFETY: the call reads the size; the kernel tells the program.
        let failed =
            unsafe { libc::ioctl(self.keys.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(failed, 0, "{}", io::Error::last_os_error());
    }

    /// Waits until the screen is as it should be, and returns it.
    ///
    /// # Panics
    /// If it is not within `limit`.
    pub fn wait(&mut self, limit: Duration, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let text = self.text();
            if is_so(&text) {
                return text;
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{what}: ended with {status}\n{text}");
            }
            assert!(start.elapsed() < scaled(limit), "{what}:\n{text}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill has no memory effects; the child is not yet waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// Waits for the end; how it ended, and what is on the screen then.
    ///
    /// # Panics
    /// If it does not end within a minute.
    pub fn end(&mut self) -> (ExitStatus, String) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                // What it wrote last is on its way.
                thread::sleep(Duration::from_millis(100));
                return (status, self.text());
            }
            assert!(
                start.elapsed() < scaled(Duration::from_secs(60)),
                "still up:\n{}",
                self.text()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// True if the terminal is as it was before the program: its settings, its first screen, its cursor.
    pub fn is_restored(&self) -> bool {
        let (before, now) = (&self.before, settings(&self.line));
        let settings = |of: &libc::termios| (of.c_iflag, of.c_oflag, of.c_cflag, of.c_lflag);
        let shows = self.screen(|screen| !screen.alternate_screen() && !screen.hide_cursor());
        shows && settings(before) == settings(&now)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A failed test must not leave it behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock(emulator: &Mutex<Parser>) -> MutexGuard<'_, Parser> {
    emulator
        .lock()
        .expect("the thread that reads has not failed")
}

fn number(value: u16) -> NonZeroU16 {
    NonZeroU16::new(value).expect("a size")
}

fn size(columns: u16, rows: u16) -> libc::winsize {
    libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn settings(line: &OwnedFd) -> libc::termios {
    // SAFETY: a termios is plain numbers, for which zero is valid; the call writes it.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        let failed = libc::tcgetattr(line.as_raw_fd(), &raw mut settings);
        assert_eq!(failed, 0, "{}", io::Error::last_os_error());
        settings
    }
}
