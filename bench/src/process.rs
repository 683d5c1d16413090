use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use larder_link::Node;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Builder;

/// CPU time of this process so far, all threads, user and kernel.
pub(crate) fn cpu() -> Duration {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    let secs = u64::try_from(spent.tv_sec).unwrap_or(0);
    Duration::new(secs, u32::try_from(spent.tv_nsec).unwrap_or(0))
}

/// This program once more, as a server. It ends when this is dropped.
///
/// It writes one line when it is ready, then a line for each line it reads, until its standard
/// input ends. `cpu` and `memory` are questions that each one answers.
pub(crate) struct Server {
    child: Child,
    questions: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    ready: String,
}

impl Server {
    /// Starts it with these arguments and waits until it is ready.
    pub(crate) fn start(args: &[String]) -> anyhow::Result<Self> {
        Self::spawn(Command::new(program()?), args)
    }

    /// The same in a node of a net.
    pub(crate) fn start_in(node: &Node, args: &[String]) -> anyhow::Result<Self> {
        Self::spawn(node.command(program()?), args)
    }

    fn spawn(mut command: Command, args: &[String]) -> anyhow::Result<Self> {
        let mut child = command
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
        let nanos = self.ask("cpu")?.parse().context("a CPU time")?;
        Ok(Duration::from_nanos(nanos))
    }

    /// Bytes of its memory that are resident.
    pub(crate) fn memory(&mut self) -> anyhow::Result<u64> {
        self.ask("memory")?.parse().context("a number of bytes")
    }

    /// Asks something and waits for the answer.
    pub(crate) fn ask(&mut self, question: &str) -> anyhow::Result<String> {
        self.tell(question)?;
        self.answer()
    }

    /// Asks something whose [`answer`](Self::answer) is waited for later.
    pub(crate) fn tell(&mut self, question: &str) -> anyhow::Result<()> {
        let questions = self.questions.as_mut().context("the server has ended")?;
        writeln!(questions, "{question}").context("the server's input")
    }

    /// The next answer.
    pub(crate) fn answer(&mut self) -> anyhow::Result<String> {
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

fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("the path of this program")
}

/// The server's side on a runtime of one thread, which is the main one: `begin` starts to serve
/// within it and returns what is said when it is ready. Ends when nobody asks any more.
pub(crate) fn serve(begin: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let ready = begin()?;
        // Questions come in on another thread.
        tokio::task::spawn_blocking(move || answer(&ready)).await?
    })
}

/// The server's side: says that it is ready and answers until nobody asks any more. Blocks.
pub(crate) fn answer(ready: &str) -> anyhow::Result<()> {
    answer_with(ready, |question| bail!("an unknown question: {question}"))
}

/// The same for a server that answers further questions.
pub(crate) fn answer_with(
    ready: &str,
    mut other: impl FnMut(&str) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{ready}")?;
    for line in std::io::stdin().lock().lines() {
        let answer = match &*line? {
            "cpu" => cpu().as_nanos().to_string(),
            "memory" => memory()?.to_string(),
            question => other(question)?,
        };
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

fn memory() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
    let kib: u64 = kib.context("no VmRSS")?.trim().parse()?;
    Ok(kib << 10)
}
