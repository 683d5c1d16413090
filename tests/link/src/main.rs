//! `larder-link`: plays a scenario around commands that run in its nodes.

use std::cmp::Reverse;
use std::fs;
use std::io::{self, Write};
use std::process::{Child, ExitCode, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use clap::{Parser, Subcommand};
use larder_link::net::{Missing, Net, Node};
use larder_link::play::play;
use larder_link::scenario::{Event, Scenario, ScenarioError};
use larder_link::{shipped, table};
use rustix::process::{Pid, Signal, kill_process};

/// How long commands may take to end after SIGTERM, before they are killed.
const GRACE: Duration = Duration::from_secs(5);

/// How often a command is asked whether it has ended.
const LOOK: Duration = Duration::from_millis(20);

const EXAMPLES: &str = "\
EXAMPLES
  larder-link list
  larder-link show link-cut > mine.yaml
  larder-link check mine.yaml
  larder-link run link-cut -- w1 ping -c 9 @coordinator
  larder-link run mine.yaml --json \\
      -- coordinator larder coordinator --listen @coordinator:7457 --certs c --store c/s --socket c.sock \\
      -- w1 larder worker --coordinator @coordinator:7457 --listen @w1:7457 --certs w --store w/s --socket w.sock
  While it runs, in another shell: larder get etl/daily --socket w.sock

NEEDS
  Linux and root, for network namespaces, and /dev/net/tun. No netem and no iptables.
  Missing /dev/net/tun: modprobe tun; or: mkdir -p /dev/net && mknod /dev/net/tun c 10 200";

/// A flaky network for real processes.
///
/// Each node of a scenario is a network namespace with one device, at 10.77.0.1 and up. A thread
/// carries IP packets between them and delays, drops, reorders, repeats and cuts as the scenario
/// says.
#[derive(Debug, Parser)]
#[command(name = "larder-link", version, after_help = EXAMPLES)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play a scenario around commands, and print what happened on every link.
    ///
    /// Each `--` begins a node's name and a command for it. `@NAME` in a word becomes that node's
    /// address. It ends when the scenario does, or when the last command ends before: then all
    /// get SIGTERM, and SIGKILL five seconds later. Its own exit code is 1 if a command failed
    /// before that, and 2 if nothing could be played.
    #[command(after_help = EXAMPLES)]
    Run {
        /// A file, or the name of one that `list` prints.
        scenario: String,
        /// Print the counters as JSON.
        #[arg(long)]
        json: bool,
        /// Use this seed instead of the scenario's.
        #[arg(long)]
        seed: Option<u64>,
        /// A node and its command, and more of them behind further `--`.
        #[arg(last = true, required = true, value_name = "NODE COMMAND")]
        words: Vec<String>,
    },
    /// List the scenarios that come with it.
    List,
    /// Print a scenario that comes with it, to begin one of your own.
    Show {
        /// Its name.
        scenario: String,
    },
    /// Check a scenario and say what will happen when.
    Check {
        /// A file, or the name of one that `list` prints.
        scenario: String,
    },
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot read {path}: {source}; `larder-link list` names those that come with it")]
    Read { path: String, source: io::Error },
    #[error("{path}: {source}")]
    Scenario { path: String, source: ScenarioError },
    #[error(transparent)]
    Missing(#[from] Missing),
    #[error("`{0}` is no node of this scenario, which has {1}")]
    Node(String, String),
    #[error("node `{0}` has no command")]
    Empty(String),
    #[error("cannot start `{0}`: {1}")]
    Start(String, io::Error),
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Run {
            scenario,
            json,
            seed,
            words,
        } => run(&scenario, json, seed, &words),
        Command::List => list(),
        Command::Show { scenario } => text_of(&scenario).and_then(|text| print(&text)),
        Command::Check { scenario } => check(&scenario),
    };
    match done {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(2)
        }
    }
}

/// Data goes to stdout, and a reader that left is no failure.
fn print(text: &str) -> Result<ExitCode, Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn text_of(name: &str) -> Result<String, Failure> {
    if let Some(text) = shipped::text(name) {
        return Ok(text.to_owned());
    }
    fs::read_to_string(name).map_err(|source| Failure::Read {
        path: name.to_owned(),
        source,
    })
}

fn scenario_of(name: &str) -> Result<Scenario, Failure> {
    let scenario = text_of(name)?.parse();
    scenario.map_err(|source| Failure::Scenario {
        path: name.to_owned(),
        source,
    })
}

fn list() -> Result<ExitCode, Failure> {
    let mut text = String::new();
    for (name, _) in shipped::ALL {
        let about = scenario_of(name)?.about().to_owned();
        text += &format!("{name:22}{about}\n");
    }
    print(&text)
}

fn check(name: &str) -> Result<ExitCode, Failure> {
    let scenario = scenario_of(name)?;
    let mut text = format!("{}\nevery link: {:?}\n", scenario.about(), scenario.base());
    for event in scenario.events() {
        text += &format!("{}\n", said(event, scenario.nodes()));
    }
    text += &format!("{:?} end\n", scenario.lasts());
    print(&text)
}

fn said(event: &Event, nodes: &[String]) -> String {
    let (from, to) = (&nodes[event.from - 1], &nodes[event.to - 1]);
    format!("{:?} {from} -> {to}: {:?}", event.at, event.action)
}

/// A command in its node, which ends with this.
struct Guest {
    what: String,
    child: Child,
}

impl Guest {
    fn signal(&mut self, signal: Signal) {
        // The id of one that has been waited for may be another's.
        if !self.has_ended() {
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn has_failed(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(status)) if !status.success())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(name: &str, json: bool, seed: Option<u64>, words: &[String]) -> Result<ExitCode, Failure> {
    let scenario = scenario_of(name)?;
    let net = Net::of(&scenario, seed)?;
    let mut guests = Vec::new();
    for words in words.split(|word| word == "--") {
        guests.push(start(&net, words, json)?);
    }
    attend(&net, &scenario, &mut guests);
    let has_failed = guests.iter_mut().any(Guest::has_failed);
    end(&mut guests);
    let rows = table::rows(&net);
    let text = match json {
        true => serde_json::to_string(&rows).map_err(io::Error::from)? + "\n",
        false => table::text(&rows),
    };
    print(&text)?;
    Ok(ExitCode::from(u8::from(has_failed)))
}

/// Starts one node's command. Beside JSON, what it prints goes to stderr.
fn start(net: &Net, words: &[String], json: bool) -> Result<Guest, Failure> {
    let (name, words) = words
        .split_first()
        .ok_or_else(|| Failure::Empty(String::new()))?;
    let node = net.find(name).ok_or_else(|| {
        let names: Vec<_> = net.nodes().iter().map(Node::name).collect();
        Failure::Node(name.clone(), names.join(", "))
    })?;
    let words: Vec<_> = words.iter().map(|word| with_addresses(net, word)).collect();
    let (program, args) = words
        .split_first()
        .ok_or_else(|| Failure::Empty(name.clone()))?;
    let mut command = node.command(program);
    command.args(args).stdin(Stdio::null());
    if json {
        command.stdout(io::stderr());
    }
    let child = command.spawn();
    let child = child.map_err(|error| Failure::Start(program.clone(), error))?;
    Ok(Guest {
        what: words.join(" "),
        child,
    })
}

/// A word with the addresses of the nodes that it names, the longest name first.
fn with_addresses(net: &Net, word: &str) -> String {
    let mut nodes: Vec<_> = net.nodes().iter().collect();
    nodes.sort_by_key(|node| Reverse(node.name().len()));
    nodes.into_iter().fold(word.to_owned(), |word, node| {
        word.replace(&format!("@{}", node.name()), &node.address().to_string())
    })
}

/// Plays the scenario, until the last command ends.
fn attend(net: &Net, scenario: &Scenario, guests: &mut [Guest]) {
    let (stop, stopped) = channel();
    thread::scope(|scope| {
        let player = scope.spawn(move || {
            let tell = |event: &Event| eprintln!("{}", said(event, scenario.nodes()));
            play(net, scenario, &stopped, tell)
        });
        let is_over = |guests: &mut [Guest]| guests.last_mut().is_none_or(Guest::has_ended);
        while !player.is_finished() && !is_over(guests) {
            thread::sleep(LOOK);
        }
        drop(stop);
    });
}

/// Ends every command: politely, then not.
fn end(guests: &mut [Guest]) {
    for guest in guests.iter_mut() {
        guest.signal(Signal::TERM);
    }
    let deadline = larder_link::now() + GRACE;
    while !guests.iter_mut().all(Guest::has_ended) && larder_link::now() < deadline {
        thread::sleep(LOOK);
    }
    for guest in guests
        .iter_mut()
        .filter_map(|guest| (!guest.has_ended()).then_some(guest))
    {
        eprintln!("`{}` does not end and is killed", guest.what);
    }
}
