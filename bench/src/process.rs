use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::time::{ClockId, clock_gettime};

/// CPU time of this process so far, all threads, user and kernel.
pub(crate) fn cpu() -> Duration {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    let secs = u64::try_from(spent.tv_sec).unwrap_or(0);
    Duration::new(secs, u32::try_from(spent.tv_nsec).unwrap_or(0))
}

/// This program once more, as a server. It ends when this is dropped.
///
/// It writes one line when it is ready, then a line with its CPU time for each line it reads,
/// until its standard input ends.
pub(crate) struct Server {
    child: Child,
    questions: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    ready: String,
}

impl Server {
    /// Starts it with these arguments and waits until it is ready.
    pub(crate) fn start(args: &[String]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("this program as a server")?;
        let questions = child.stdin.take();
        let Some(stdout) = child.stdout.take() else {
            bail!("a server without an output");
        };
        let mut server = Self {
            child,
            questions,
            answers: BufReader::new(stdout).lines(),
            ready: String::new(),
        };
        server.ready = server.answer()?;
        Ok(server)
    }

    /// What it said when it was ready.
    pub(crate) fn ready(&self) -> &str {
        &self.ready
    }

    /// CPU time that it has used so far.
    pub(crate) fn cpu(&mut self) -> anyhow::Result<Duration> {
        let questions = self.questions.as_mut().context("the server has ended")?;
        questions
            .write_all(b"cpu\n")
            .context("the server's input")?;
        let nanos = self.answer()?.parse().context("a CPU time")?;
        Ok(Duration::from_nanos(nanos))
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let line = self.answers.next().context("the server ended")?;
        line.context("the server's output")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.questions.take());
        let _ = self.child.wait();
    }
}

/// The server's side: says that it is ready and answers until nobody asks any more. Blocks.
pub(crate) fn answer(ready: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{ready}")?;
    for _ in std::io::stdin().lock().lines() {
        writeln!(out, "{}", cpu().as_nanos())?;
    }
    Ok(())
}
