//! The harness in real namespaces. Times are only ever bounded from below, and counts are exact.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use larder_link::link::{Counters, Link};
use larder_link::rule::{Burst, Rate, Reorder};
use larder_link::unit::{Share, Size, Span};
use larder_link::{Net, Node, Options, Rule, now, skips};

/// Longer than anything takes on a busy machine; only a defect reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// IP and UDP headers.
const HEADERS: usize = 28;

const SEED: u64 = 7;

fn net(nodes: usize, rule: Rule) -> Net {
    let options = Options {
        seed: SEED,
        rule,
        ..Options::default()
    };
    Net::new(nodes, options).expect("a net")
}

fn socket(node: &Node) -> UdpSocket {
    let bind = || UdpSocket::bind((node.address(), 0)).expect("a socket");
    let socket = node.inside(bind).expect("inside");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

fn addr(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("an address")
}

/// Waits until nothing is under way and `sent` packets were given to a link.
fn settled(net: &Net, from: usize, to: usize, sent: u64) -> Counters {
    let began = now();
    loop {
        let counters = net.counters(from, to);
        if counters.sent >= sent && counters.in_flight == 0 {
            return counters;
        }
        assert!(now() - began < PATIENCE, "{counters:?}");
        thread::yield_now();
    }
}

/// Sends numbered packets from node 1 to node 2 and returns the numbers that arrived, in order.
///
/// Packets go out in small lots, so that no socket or device has to hold more than it can.
fn send(net: &Net, count: u32, len: usize) -> Vec<u32> {
    const LOT: u32 = 50;
    let (near, far) = (socket(net.node(1)), socket(net.node(2)));
    let before = net.counters(1, 2);
    let mut seen = Vec::new();
    let mut sent = 0;
    while sent < count {
        let lot = LOT.min(count - sent);
        for number in sent..sent + lot {
            let mut packet = vec![0; len - HEADERS];
            packet[..4].copy_from_slice(&number.to_be_bytes());
            near.send_to(&packet, addr(&far)).expect("sent");
        }
        sent += lot;
        let counters = settled(net, 1, 2, before.sent + u64::from(sent));
        let delivered = counters.delivered - before.delivered;
        while (seen.len() as u64) < delivered {
            let mut buffer = [0; 2_000];
            let len = far.recv(&mut buffer).expect("a packet");
            let number = buffer[..len].first_chunk().expect("a number");
            seen.push(u32::from_be_bytes(*number));
        }
    }
    seen
}

#[test]
fn an_echo_takes_at_least_the_delays_of_both_directions() {
    if skips() {
        return;
    }
    let net = net(2, Rule::default());
    let (there, back) = (Duration::from_millis(40), Duration::from_millis(90));
    net.change(1, 2, |rule| rule.delay = there);
    net.change(2, 1, |rule| rule.delay = back);
    let (near, far) = (socket(net.node(1)), socket(net.node(2)));
    let mut buffer = [0; 16];
    for _ in 0..3 {
        let began = now();
        near.send_to(b"ping", addr(&far)).expect("sent");
        let (len, from) = far.recv_from(&mut buffer).expect("a packet");
        assert!(now() - began >= there);
        assert_eq!(from, addr(&near));
        far.send_to(&buffer[..len], from).expect("sent");
        assert_eq!(near.recv(&mut buffer).expect("a packet"), 4);
        assert!(now() - began >= there + back);
    }
}

#[test]
fn losses_are_those_that_the_seed_says_packet_by_packet() {
    if skips() {
        return;
    }
    let rule = Rule {
        loss: Share::percent(20),
        burst: Some(Burst {
            enter: Share::percent(2),
            leave: Share::percent(20),
            loss: Share::ALL,
        }),
        ..Rule::default()
    };
    let seen = send(&net(2, rule.clone()), 2_000, 100);
    let mut link = Link::new(rule, SEED, 1, 2);
    let wanted: Vec<_> = (0..2_000)
        .filter(|_| link.admit(100, Duration::ZERO).is_ok())
        .collect();
    assert_eq!(seen, wanted);
    let lost = link.counters().dropped;
    assert!(lost.loss > 300 && lost.burst > 50, "{lost:?}");
}

#[test]
fn a_cut_of_one_direction_leaves_the_other_and_heals() {
    if skips() {
        return;
    }
    let net = net(2, Rule::default());
    net.cut(2, 1);
    let (near, far) = (socket(net.node(1)), socket(net.node(2)));
    let mut buffer = [0; 16];
    near.send_to(b"there", addr(&far)).expect("sent");
    assert_eq!(far.recv(&mut buffer).expect("a packet"), 5);
    far.send_to(b"lost", addr(&near)).expect("sent");
    let counters = settled(&net, 2, 1, 1);
    assert_eq!((counters.dropped.cut, counters.delivered), (1, 0));
    net.heal(2, 1);
    far.send_to(b"back again", addr(&near)).expect("sent");
    assert_eq!(near.recv(&mut buffer).expect("a packet"), 10);
    assert_eq!(net.counters(1, 2).dropped.total(), 0);
}

#[test]
fn a_rate_never_delivers_more_than_its_bucket_and_the_time_allow() {
    if skips() {
        return;
    }
    let rate = Rate {
        limit: "400kbit/s".parse().expect("a rate"),
        bucket: Size(5_000),
        queue: Size(20_000),
    };
    let rule = Rule {
        rate: Some(rate.clone()),
        ..Rule::default()
    };
    let net = net(2, rule);
    let (near, far) = (socket(net.node(1)), socket(net.node(2)));
    let began = now();
    for _ in 0..60 {
        near.send_to(&[0; 1_000 - HEADERS], addr(&far))
            .expect("sent");
    }
    loop {
        let counters = net.counters(1, 2);
        // The time is read after the count, so that it can only allow more.
        let allowed = rate.bucket.0 + rate.limit.bytes_in(now() - began);
        assert!(
            counters.delivered_bytes <= allowed,
            "{counters:?} of {allowed}"
        );
        if counters.sent == 60 && counters.in_flight == 0 {
            assert!(counters.dropped.queue > 0, "{counters:?}");
            assert!(counters.delivered >= 25, "{counters:?}");
            break;
        }
        assert!(now() - began < PATIENCE, "{counters:?}");
        thread::yield_now();
    }
}

#[test]
fn packets_above_the_mtu_of_a_path_vanish_and_others_pass() {
    if skips() {
        return;
    }
    let rule = Rule {
        mtu: Some(1_280),
        ..Rule::default()
    };
    let net = net(2, rule);
    assert!(send(&net, 1, 1_281).is_empty());
    assert_eq!(send(&net, 1, 1_280), [0]);
    let counters = net.counters(1, 2);
    assert_eq!((counters.dropped.mtu, counters.delivered), (1, 1));
}

#[test]
fn held_packets_are_overtaken() {
    if skips() {
        return;
    }
    let rule = Rule {
        reorder: Some(Reorder {
            share: Share::percent(10),
            hold: Span(Duration::from_millis(50)),
        }),
        ..Rule::default()
    };
    let net = net(2, rule);
    let mut seen = send(&net, 200, 100);
    assert!(net.counters(1, 2).reordered > 0);
    assert!(!seen.is_sorted(), "{seen:?}");
    seen.sort_unstable();
    assert_eq!(seen, (0..200).collect::<Vec<_>>());
}

#[test]
fn repeated_packets_arrive_twice() {
    if skips() {
        return;
    }
    let rule = Rule {
        duplicate: Share::percent(25),
        ..Rule::default()
    };
    let net = net(2, rule);
    let seen = send(&net, 200, 100);
    let counters = net.counters(1, 2);
    assert!(counters.duplicated > 0, "{counters:?}");
    assert_eq!(seen.len() as u64, 200 + counters.duplicated);
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>().len(), 200);
}

#[test]
fn tcp_comes_through_whole_over_a_bad_link() {
    if skips() {
        return;
    }
    let rule = Rule {
        delay: Duration::from_millis(2),
        loss: Share::percent(2),
        duplicate: Share::percent(2),
        reorder: Some(Reorder {
            share: Share::percent(2),
            hold: Span(Duration::from_millis(5)),
        }),
        ..Rule::default()
    };
    let net = net(2, rule);
    let far = net.node(2);
    let listener = far.inside(|| TcpListener::bind((far.address(), 0)).expect("bound"));
    let listener = listener.expect("inside");
    let addr = listener.local_addr().expect("an address");
    let data: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let got = thread::scope(|scope| {
        scope.spawn(|| {
            let connect = || TcpStream::connect(addr).expect("connected");
            let mut near = net.node(1).inside(connect).expect("inside");
            near.write_all(&data).expect("written");
        });
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).expect("read");
        got
    });
    assert!(got == data, "{} bytes of {}", got.len(), data.len());
    assert!(net.counters(1, 2).dropped.loss > 0);
}

#[test]
fn twenty_nodes_all_reach_each_other_and_loopback() {
    if skips() {
        return;
    }
    let net = net(20, Rule::default());
    let sockets: Vec<_> = net.nodes().iter().map(socket).collect();
    for (from, near) in sockets.iter().enumerate() {
        for far in sockets.iter().filter(|far| addr(far) != addr(near)) {
            near.send_to(&[from as u8], addr(far)).expect("sent");
        }
    }
    for (to, far) in sockets.iter().enumerate() {
        let mut senders = BTreeSet::new();
        let mut buffer = [0; 16];
        for _ in 1..sockets.len() {
            far.recv(&mut buffer).expect("a packet");
            senders.insert(usize::from(buffer[0]));
        }
        let others = (0..sockets.len()).filter(|from| *from != to);
        assert_eq!(senders, others.collect());
    }
    for node in net.nodes() {
        let over_loopback = || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            socket.send_to(b"me", addr(&socket)).expect("sent");
            socket.recv(&mut [0; 16]).expect("a packet")
        };
        assert_eq!(node.inside(over_loopback).expect("inside"), 2);
    }
}

/// The network namespace that a command finds itself in.
fn space_of(mut command: Command) -> String {
    command.args(["-c", "readlink /proc/self/ns/net"]);
    let output = command.output().expect("it runs");
    String::from_utf8(output.stdout)
        .expect("text")
        .trim()
        .to_owned()
}

/// Whether any process, thread or file descriptor on this machine holds a namespace.
fn is_held(space: &str) -> bool {
    let links = |dir: std::path::PathBuf| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| fs::read_link(entry.path()).ok())
    };
    // What ends while it is looked at holds nothing.
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let mut held = processes.flat_map(|process| {
        let tasks = fs::read_dir(process.path().join("task"));
        let tasks = tasks.into_iter().flatten().flatten();
        let mut found: Vec<_> = links(process.path().join("fd")).collect();
        found.extend(tasks.flat_map(|task| links(task.path().join("ns"))));
        found
    });
    held.any(|link| link.to_str() == Some(space))
}

#[test]
fn a_net_that_is_dropped_leaves_no_namespace_behind() {
    if skips() {
        return;
    }
    let named = || fs::metadata("/run/netns").map(|dir| dir.mtime()).ok();
    let before = named();
    let net = net(3, Rule::default());
    let spaces: Vec<_> = net
        .nodes()
        .iter()
        .map(|node| space_of(node.command("sh")))
        .collect();
    assert_eq!(
        spaces.iter().collect::<BTreeSet<_>>().len(),
        3,
        "{spaces:?}"
    );
    assert!(!spaces.contains(&space_of(Command::new("sh"))));
    assert!(spaces.iter().all(|space| is_held(space)));
    drop(net);
    for space in spaces {
        assert!(!is_held(&space), "{space}");
    }
    assert_eq!(named(), before);
}

fn link(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder-link"));
    command.args(args).stdin(Stdio::null());
    command
}

#[test]
fn nothing_outlives_a_crash() {
    if skips() {
        return;
    }
    let talk = "readlink /proc/self/ns/net; exec sleep 600";
    let mut command = link(&["run", "link-cut", "--", "w1", "sh", "-c", talk]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let mut space = String::new();
    output.read_line(&mut space).expect("a line");
    assert!(is_held(space.trim()), "{space}");
    child.kill().expect("it runs");
    child.wait().expect("ended");
    // The end of the output is the end of every process that could write to it.
    let (send, ended) = channel();
    thread::spawn(move || send.send(output.read_to_string(&mut String::new())));
    let ended = ended.recv_timeout(PATIENCE);
    assert!(ended.is_ok_and(|read| read.is_ok()), "{space} lives on");
    assert!(!is_held(space.trim()), "{space}");
}

#[test]
fn the_command_plays_a_scenario_and_counts() {
    if skips() {
        return;
    }
    let talk = "for n in 1 2; do echo $n > /dev/udp/@coordinator/9; done; echo @w1";
    let args = [
        "run",
        "asymmetric-cut",
        "--json",
        "--",
        "w2",
        "sleep",
        "600",
        "--",
        "w1",
        "bash",
        "-c",
        talk,
    ];
    let output = link(&args).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("10.77.0.2"), "{said}");
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    // The coordinator's kernel answers that nobody listens, which is counted too.
    let is_there = |row: &&serde_json::Value| row["from"] == "w1" && row["to"] == "coordinator";
    let row = rows.as_array().and_then(|rows| rows.iter().find(is_there));
    assert_eq!(row.expect("a row")["sent"], 2, "{rows}");
}

#[test]
fn the_command_says_what_is_wrong() {
    let output = link(&["check", "nowhere.yaml"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("nowhere.yaml") && said.contains("larder-link list"),
        "{said}"
    );
    if skips() {
        return;
    }
    let output = link(&["run", "split", "--", "w9", "true"]).output();
    let said = String::from_utf8_lossy(&output.expect("it runs").stderr).into_owned();
    assert!(
        said.contains("`w9` is no node") && said.contains("w1, w2"),
        "{said}"
    );
}

#[test]
fn a_node_that_takes_its_second_address_is_found_there_alone() {
    if skips() {
        return;
    }
    let net = net(2, Rule::default());
    let (near, far) = (net.node(1), net.node(2));
    far.take_address(far.second_address()).expect("taken");
    let bind = |address: Ipv4Addr| far.inside(|| UdpSocket::bind((address, 0)));
    assert!(bind(far.address()).expect("inside").is_err());
    let socket_there = bind(far.second_address())
        .expect("inside")
        .expect("a socket");
    socket_there.set_read_timeout(Some(PATIENCE)).expect("set");
    let sender = socket(near);
    sender.send_to(b"moved", addr(&socket_there)).expect("sent");
    let mut bytes = [0; 8];
    let (len, from) = socket_there.recv_from(&mut bytes).expect("a packet");
    assert_eq!((&bytes[..len], from), (&b"moved"[..], addr(&sender)));
    far.take_address(far.address()).expect("taken back");
    assert!(bind(far.address()).expect("inside").is_ok());
}
