use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// What takes less is over before anybody can read about it.
const QUIET: Duration = Duration::from_secs(1);

/// Often enough to look alive.
const INTERVAL: Duration = Duration::from_millis(100);

/// One line on a terminal that counts what was sent.
pub(super) struct Progress {
    total: usize,
    done: usize,
    shown_at: Option<Instant>,
    started: Instant,
    terminal: bool,
}

impl Progress {
    pub(super) fn new(total: usize) -> Self {
        Self {
            total,
            done: 0,
            shown_at: None,
            started: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// One more.
    pub(super) fn step(&mut self) {
        self.done += 1;
        let now = Instant::now();
        let due = self.shown_at.is_none_or(|at| now - at >= INTERVAL);
        if self.terminal && due && now - self.started >= QUIET {
            self.shown_at = Some(now);
            self.write(&format!("\r{} of {} bodies sent", self.done, self.total));
        }
    }

    /// Progress is no part of the result: a terminal that went away is no error.
    fn write(&self, text: &str) {
        let mut err = std::io::stderr();
        let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
    }
}

impl Drop for Progress {
    /// Clears the line, so that an error does not start in the middle of it.
    fn drop(&mut self) {
        if self.shown_at.is_some() {
            self.write("\r\x1b[K");
        }
    }
}
