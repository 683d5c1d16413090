//! The processes of the demo and the directory that they live in.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use larder::api::Api;
use larder::bridge::http::HttpClient;
use larder::identity::Role;
use larder::trust::issue::{self, NODE_VALIDITY, Order};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::LEASE;

/// How long a process may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often a process is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Coordinator and workers, killed when this is dropped.
pub(super) struct Site {
    dir: Option<TempDir>,
    path: PathBuf,
    processes: BTreeMap<String, Process>,
}

struct Process {
    args: Vec<String>,
    child: Option<Child>,
}

/// A node that answers.
pub(super) struct Running {
    pub(super) client: HttpClient,
    pub(super) listen: String,
}

impl Site {
    pub(super) fn new() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("larder-demo-").tempdir()?;
        let path = dir.path().to_owned();
        issue::init(&path.join("certs"), "demo")?;
        // Whatever this machine is configured for has no part in it.
        fs::write(path.join("larder.yaml"), "{}\n")?;
        Ok(Self {
            dir: Some(dir),
            path,
            processes: BTreeMap::new(),
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.path
    }

    /// The directory stays when this is dropped.
    pub(super) fn keep(&mut self) {
        if let Some(dir) = self.dir.take() {
            let _ = dir.keep();
        }
    }

    pub(super) async fn start_coordinator(&mut self) -> anyhow::Result<Running> {
        let lease = format!("{}ms", LEASE.as_millis());
        let more = ["--lease", &lease];
        self.start("c1", Role::Coordinator, &more).await
    }

    pub(super) async fn start_worker(
        &mut self,
        name: &str,
        coordinator: &str,
        peers: &[&String],
    ) -> anyhow::Result<Running> {
        let mut more = vec!["--coordinator", coordinator];
        for peer in peers {
            more.extend(["--peer", peer]);
        }
        self.start(name, Role::Worker, &more).await
    }

    async fn start(&mut self, name: &str, role: Role, more: &[&str]) -> anyhow::Result<Running> {
        let order = Order {
            role,
            name: name.into(),
            valid_for: NODE_VALIDITY,
            out: None,
            force: false,
        };
        let certs = issue::issue(&self.path.join("certs"), &order)?.dir;
        let mut args: Vec<String> = vec![role.to_string()];
        let path = |file: String| self.path.join(file).display().to_string();
        for (flag, value) in [
            ("--config", path("larder.yaml".into())),
            ("--certs", certs.display().to_string()),
            ("--store", path(format!("{name}.store"))),
            ("--socket", self.socket(name).display().to_string()),
            ("--listen", "127.0.0.1:0".into()),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let process = Process { args, child: None };
        self.processes.insert(name.into(), process);
        let client = self.restart(name).await?;
        let status = client.status().await?;
        let listen = status["listen"]
            .as_str()
            .context("a status without address")?;
        // From now on the port is known to others.
        let process = self.process(name)?;
        if let Some(at) = process.args.iter().position(|arg| arg == "127.0.0.1:0") {
            process.args[at] = listen.to_owned();
        }
        Ok(Running {
            client,
            listen: listen.to_owned(),
        })
    }

    /// Starts a process with further arguments from now on.
    pub(super) async fn restart_with(
        &mut self,
        name: &str,
        more: &[&str],
    ) -> anyhow::Result<HttpClient> {
        let process = self.process(name)?;
        process
            .args
            .extend(more.iter().map(|arg| (*arg).to_owned()));
        self.restart(name).await
    }

    /// Starts a process that is not running (any more) and waits until it answers.
    pub(super) async fn restart(&mut self, name: &str) -> anyhow::Result<HttpClient> {
        let socket = self.socket(name);
        let log_path = self.path.join(format!("{name}.log"));
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)?;
        let process = self.process(name)?;
        if let Some(mut child) = process.child.take() {
            child.kill().ok();
            child.wait()?;
        }
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(&process.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("LARDER_") {
                command.env_remove(variable);
            }
        }
        process.child = Some(
            command
                .spawn()
                .context("this program does not start again")?,
        );
        let began = Instant::now();
        loop {
            if let Ok(client) = HttpClient::connect(socket.as_path()).await {
                return Ok(client);
            }
            let ended = match &mut self.process(name)?.child {
                Some(child) => child.try_wait()?,
                None => None,
            };
            if ended.is_some() || began.elapsed() > PATIENCE {
                let log = fs::read_to_string(&log_path).unwrap_or_default();
                anyhow::bail!("{name} does not come up:\n{log}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Sends SIGTERM and waits for an end in good order.
    pub(super) async fn terminate(&mut self, name: &str) -> anyhow::Result<()> {
        let pid = self.pid(name)?;
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a process id")?, Signal::TERM)?;
        let mut child = self
            .process(name)?
            .child
            .take()
            .context("it is not running")?;
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                anyhow::ensure!(status.success(), "{name} ended with {status}");
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                child.kill().ok();
                anyhow::bail!("{name} does not end");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(super) fn pid(&self, name: &str) -> anyhow::Result<u32> {
        let child = self
            .processes
            .get(name)
            .and_then(|process| process.child.as_ref());
        Ok(child.context("it is not running")?.id())
    }

    /// Changes one byte of `body` in every file of a node's store that holds it, and says
    /// in how many places.
    pub(super) fn flip_byte(&self, name: &str, body: &[u8]) -> anyhow::Result<usize> {
        let needle = &body[..body.len().min(256)];
        let mut changed = 0;
        let mut dirs = vec![self.path.join(format!("{name}.store"))];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir)? {
                let path = entry?.path();
                if path.is_dir() {
                    dirs.push(path);
                    continue;
                }
                let bytes = fs::read(&path)?;
                for at in find_all(&bytes, needle) {
                    let at = at + needle.len() / 2;
                    let file = File::options().write(true).open(&path)?;
                    file.write_all_at(&[bytes[at] ^ 1], at as u64)?;
                    changed += 1;
                }
            }
        }
        Ok(changed)
    }

    fn process(&mut self, name: &str) -> anyhow::Result<&mut Process> {
        self.processes
            .get_mut(name)
            .context("there is no such process")
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.sock"))
    }
}

fn find_all(bytes: &[u8], needle: &[u8]) -> Vec<usize> {
    let windows = bytes.windows(needle.len()).enumerate();
    windows
        .filter(|(_, window)| *window == needle)
        .map(|(at, _)| at)
        .collect()
}

impl Drop for Site {
    fn drop(&mut self) {
        for process in self.processes.values_mut() {
            if let Some(child) = &mut process.child {
                child.kill().ok();
                child.wait().ok();
            }
        }
    }
}
