//! A directory with a cluster's certificates, and real processes in it.
//!
//! A daemon is ready when its log says so, which it does once it answers on its socket; what
//! waits here waits for a line or for the end of a process, with [`PATIENCE`] as the bound.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything takes on a busy machine; only a defect reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test.
pub(crate) const LARDER: &str = env!("CARGO_BIN_EXE_larder");

/// Runs a future to its end.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(future)
}

/// Everything that one test has on disk.
#[derive(Debug)]
pub(crate) struct Site(TempDir);

impl Site {
    /// A site with a cluster's authority.
    pub(crate) fn new() -> Self {
        let site = Self(tempfile::tempdir().expect("a directory"));
        site.found("certs", "test.example");
        site
    }

    /// Makes the authority of a cluster in a directory of the site.
    pub(crate) fn found(&self, dir: &str, cluster: &str) {
        let dir = self.path(dir);
        self.run(&["certs", "init", "--cluster", cluster, "--dir", text(&dir)])
            .ok();
    }

    /// The path of something in the site.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file, with the folders that it needs, and returns its path as text.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("within the site")).expect("made");
        fs::write(&path, bytes).expect("written");
        text(&path).to_owned()
    }

    /// The identity directory of a node, issued unless it is there.
    pub(crate) fn identity(&self, role: &str, name: &str) -> String {
        self.identity_of("certs", role, name)
    }

    /// The same of the authority in another directory.
    pub(crate) fn identity_of(&self, authority: &str, role: &str, name: &str) -> String {
        let dir = self.path(authority);
        let issued = dir.join(role).join(name);
        if !issued.exists() {
            let dir = text(&dir);
            let args = [
                "certs", "issue", "--role", role, "--name", name, "--dir", dir,
            ];
            self.run(&args).ok();
        }
        text(&issued).to_owned()
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("it starts");
        let pid = Pid::from_child(&child);
        let (send, ended) = channel();
        thread::spawn(move || send.send(child.wait_with_output()));
        match ended.recv_timeout(PATIENCE) {
            Ok(output) => Ended::new(args, &output.expect("its output")),
            Err(_) => {
                let _ = kill_process(pid, Signal::KILL);
                let killed = ended.recv_timeout(PATIENCE);
                panic!("{args:?} does not end: {killed:?}");
            }
        }
    }

    /// The same with these environment variables.
    pub(crate) fn run_with(&self, variables: &[(&str, &str)], args: &[&str]) -> Ended {
        let mut command = self.command(args);
        command.envs(variables.iter().copied());
        Ended::new(args, &command.output().expect("it starts"))
    }

    fn command(&self, args: &[&str]) -> Command {
        self.prepare(Command::new(LARDER), args)
    }

    /// A command that sees nothing of this machine's configuration.
    fn prepare(&self, mut command: Command, args: &[&str]) -> Command {
        command
            .args(args)
            .env_clear()
            .env("HOME", self.0.path())
            .env("XDG_RUNTIME_DIR", self.0.path())
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    /// Starts a coordinator with the usual certificate; its store and socket have its name.
    pub(crate) fn coordinator(&self, name: &str) -> Daemon {
        let certs = self.identity("coordinator", name);
        self.start(&["coordinator", "--certs", &certs], name)
            .expect("it starts")
    }

    /// Starts a worker that asks `coordinator`, with further flags.
    pub(crate) fn worker(&self, name: &str, coordinator: &Daemon, more: &[&str]) -> Daemon {
        self.worker_of(name, coordinator.addr(), more)
    }

    /// The same of whoever is at `coordinator`.
    pub(crate) fn worker_of(&self, name: &str, coordinator: &str, more: &[&str]) -> Daemon {
        let certs = self.identity("worker", name);
        let mut args = vec!["worker", "--certs", &certs, "--coordinator", coordinator];
        args.extend(more);
        self.start(&args, name).expect("it starts")
    }

    /// Starts a daemon on a free port of loopback unless `args` name one.
    ///
    /// # Errors
    /// How it ended, if it ended instead of being ready.
    pub(crate) fn start(&self, args: &[&str], name: &str) -> Result<Daemon, Ended> {
        self.start_as(Command::new(LARDER), args, name)
    }

    /// The same of a command that runs [`LARDER`] somewhere else.
    ///
    /// # Errors
    /// How it ended, if it ended instead of being ready.
    pub(crate) fn start_as(
        &self,
        command: Command,
        args: &[&str],
        name: &str,
    ) -> Result<Daemon, Ended> {
        let socket = self.path(&format!("{name}.sock"));
        let store = self.path(name);
        let mut all = args.to_vec();
        for (flag, value) in [
            ("--listen", "127.0.0.1:0"),
            ("--socket", text(&socket)),
            ("--store", text(&store)),
            ("--log-format", "json"),
        ] {
            if !args.contains(&flag) {
                all.extend([flag, value]);
            }
        }
        let mut child = self
            .prepare(command, &all)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let (log, ready) = follow(child.stderr.take().expect("piped"));
        match ready.recv_timeout(PATIENCE) {
            Ok(addr) => Ok(Daemon {
                child,
                addr,
                socket: text(&socket).to_owned(),
                args: all.iter().map(ToString::to_string).collect(),
                log,
                ended: ready,
            }),
            Err(RecvTimeoutError::Disconnected) => {
                let code = child.wait().expect("ended").code();
                let err = log.text();
                Err(Ended {
                    what: all.join(" "),
                    code,
                    out: String::new(),
                    err,
                })
            }
            Err(RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                panic!("{all:?} is neither ready nor over: {log:?}");
            }
        }
    }
}

/// What a daemon has said so far.
#[derive(Debug, Default)]
struct Log {
    text: Mutex<String>,
    grown: Condvar,
}

impl Log {
    fn push(&self, line: &str) {
        let mut text = self.text.lock().expect("no panic");
        text.push_str(line);
        text.push('\n');
        self.grown.notify_all();
    }

    fn text(&self) -> String {
        self.text.lock().expect("no panic").clone()
    }
}

/// Collects what a daemon says. The channel gives the address once, and closes with the process.
fn follow(stderr: ChildStderr) -> (Arc<Log>, Receiver<String>) {
    let log = Arc::new(Log::default());
    let (send, receive) = channel();
    let copy = Arc::clone(&log);
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let value: Value = serde_json::from_str(&line).unwrap_or_default();
            copy.push(&line);
            let fields = &value["fields"];
            let message = fields["message"].as_str().unwrap_or_default();
            if message.ends_with(" ready") {
                let addr = fields["listen"].as_str().expect("an address");
                let _ = send.send(addr.to_owned());
            }
        }
    });
    (log, receive)
}

/// A daemon; it is killed when dropped, and its log is shown when the test fails.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    addr: String,
    socket: String,
    args: Vec<String>,
    log: Arc<Log>,
    ended: Receiver<String>,
}

impl Daemon {
    /// Where it listens for QUIC.
    pub(crate) fn addr(&self) -> &str {
        &self.addr
    }

    /// The path of its local socket.
    pub(crate) fn socket(&self) -> &str {
        &self.socket
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for a line of the log with all of these words.
    #[track_caller]
    pub(crate) fn says(&self, words: &[&str]) {
        let said = |text: &str| {
            let mut lines = text.lines();
            lines.any(|line| words.iter().all(|word| line.contains(word)))
        };
        let text = self.log.text.lock().expect("no panic");
        let waited = self
            .log
            .grown
            .wait_timeout_while(text, PATIENCE, |text| !said(text));
        let (text, waited) = waited.expect("no panic");
        // The log is shown when the daemon is dropped, so it must not stay locked.
        drop(text);
        assert!(!waited.timed_out(), "no line has {words:?}");
    }

    /// Sends a signal, and sees that a process that is to stand still does.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it runs");
        if signal == Signal::STOP {
            // A process on another core may answer once more before the signal reaches it.
            waitpid(Some(pid), WaitOptions::UNTRACED).expect("it stands still");
        }
    }

    /// Ends it as a power cut would, as far as a process can.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("ended");
    }

    /// Ends it with SIGTERM and sees that it ends well.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        let end = self.ended.recv_timeout(PATIENCE);
        assert_eq!(end, Err(RecvTimeoutError::Disconnected), "{}", self.log());
        let status = self.child.wait().expect("ended");
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {}\n{}", self.args.join(" "), self.log());
        }
    }
}

/// How a command ended.
pub(crate) struct Ended {
    what: String,
    code: Option<i32>,
    /// What it printed.
    pub(crate) out: String,
    /// What it said beside that.
    pub(crate) err: String,
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.story())
    }
}

impl Ended {
    fn new(args: &[&str], output: &Output) -> Self {
        Self {
            what: args.join(" "),
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// All of it, for a test that fails.
    fn story(&self) -> String {
        let Self {
            what,
            code,
            out,
            err,
        } = self;
        format!("larder {what}\nexit {code:?}\n--- stdout\n{out}\n--- stderr\n{err}")
    }

    /// Whether it did what it was to do.
    pub(crate) fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// Its output; it must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.story());
        self.out
    }

    /// Its output as JSON; it must have succeeded.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.ok()).expect("JSON")
    }

    /// It must have failed with this code and have said all of this, and print no data.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.out, "", "{}", self.story());
        self.ends(code, words);
    }

    /// It must have ended with this code and have said all of this, whatever it printed.
    #[track_caller]
    pub(crate) fn ends(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.story());
        for word in words {
            assert!(
                self.err.contains(word),
                "`{word}` is missing: {}",
                self.story()
            );
        }
    }
}

/// A path as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
