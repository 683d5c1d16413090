use super::*;
use crate::doctor::seen::DaemonSaid;
use crate::net::Wanted;
use crate::proto::code::CloseCode;
use crate::store::lock::Holder;

const DAY: u64 = 86_400;

fn uri(role: Role, name: &str) -> NodeUri {
    NodeUri::new("test.example", role, name).expect("a URI")
}

fn socket_addr(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Checks the verdict, and that the finding and the hint hold these words; no words, no hint.
#[track_caller]
fn check(found: &Finding, verdict: Verdict, words: &[&str], hint: &str) {
    assert_eq!(found.verdict, verdict, "{found:?}");
    for word in words {
        assert!(found.finding.contains(word), "{word}: {found:?}");
    }
    match &found.hint {
        Some(said) => assert!(!hint.is_empty() && said.contains(hint), "{hint}: {found:?}"),
        None => assert_eq!(hint, "", "{found:?}"),
    }
}

fn loaded(refused: Option<Untrusted>) -> IdentitySeen {
    IdentitySeen::Loaded {
        uri: uri(Role::Worker, "w1"),
        validity: Some(Validity {
            not_before_unix_s: 0,
            not_after_unix_s: 60 * DAY,
        }),
        refused,
    }
}

#[test]
fn a_certificate_is_good_until_a_sixth_of_its_time_is_left() {
    let good = identity(&loaded(None), DAY);
    check(&good, Verdict::Ok, &["worker/w1", "59 days left"], "");
    let late = identity(&loaded(None), 51 * DAY);
    let words = ["1970-03-02T00:00:00Z", "9 days left"];
    check(&late, Verdict::Warning, &words, "certs issue --force");
}

#[test]
fn a_certificate_that_peers_refuse_has_failed_and_shows_its_dates() {
    let words = ["expired", "until 1970-03-02T00:00:00Z"];
    let late = identity(&loaded(Some(Untrusted::Expired)), 61 * DAY);
    check(&late, Verdict::Failed, &words, "clock says 1970-03-03");
    let revoked = identity(&loaded(Some(Untrusted::Revoked)), DAY);
    check(&revoked, Verdict::Failed, &["revoked"], "trust.yaml");
}

#[test]
fn an_identity_that_does_not_load_has_failed() {
    let searched = vec!["/etc/x".into(), "/home/y".into()];
    let missing = identity(&IdentitySeen::Missing { searched }, 0);
    let words = ["/etc/x, /home/y"];
    check(&missing, Verdict::Failed, &words, "larder certs issue");
    let open = IdentitySeen::Unusable {
        error: "key.pem: mode 644".into(),
        hint: "chmod 600",
    };
    check(&identity(&open, 0), Verdict::Failed, &["644"], "chmod 600");
}

#[test]
fn clocks_that_leases_and_certificates_cannot_use_are_named() {
    let good = ClockSeen {
        unix_s: EARLIEST_UNIX_S,
        boot_clock: true,
        boot_id: true,
    };
    check(&clock(&good), Verdict::Ok, &["2026-01-01T00:00:00Z"], "");
    let early = ClockSeen { unix_s: 5, ..good };
    check(&clock(&early), Verdict::Failed, &["1970"], "timedatectl");
    let boot_id = false;
    let nameless = ClockSeen { boot_id, ..good };
    check(&clock(&nameless), Verdict::Warning, &["boot id"], "/proc");
    let boot_clock = false;
    let stopped = ClockSeen { boot_clock, ..good };
    check(&clock(&stopped), Verdict::Failed, &[], "BOOTTIME");
}

#[test]
fn few_files_are_a_warning() {
    check(&files(None), Verdict::Ok, &["no limit"], "");
    check(&files(Some(1_024)), Verdict::Ok, &["1024"], "");
    check(
        &files(Some(1_023)),
        Verdict::Warning,
        &["1023"],
        "ulimit -n",
    );
}

fn directory(mode: u32, holder: Result<Option<Holder>, String>) -> Place {
    Place::Directory {
        writable: true,
        mode,
        holder,
    }
}

fn store_at(place: Place, free: u64) -> Finding {
    let seen = StoreSeen {
        dir: "/srv/w".into(),
        place,
        free: Some(free),
    };
    store(&seen, Role::Worker)
}

#[test]
fn a_store_is_good_when_it_is_ours_and_there_is_room() {
    let held = |role| {
        Ok(Some(Holder {
            pid: Some(7),
            role: Some(role),
        }))
    };
    let free = store_at(directory(0o700, Ok(None)), 5 << 30);
    check(&free, Verdict::Ok, &["held by nobody", "5 GiB free"], "");
    let ours = store_at(directory(0o700, held(Role::Worker)), 5 << 30);
    check(&ours, Verdict::Ok, &["the worker with pid 7"], "");
    let other = store_at(directory(0o700, held(Role::Coordinator)), 5 << 30);
    let words = ["the coordinator with pid 7", "this node is a worker"];
    check(&other, Verdict::Failed, &words, "--store");
    let open = store_at(directory(0o755, Ok(None)), 5 << 30);
    check(&open, Verdict::Warning, &["755"], "chmod 700 /srv/w");
    let full = store_at(directory(0o700, Ok(None)), 1 << 20);
    check(&full, Verdict::Failed, &["1 MiB free"], "free some space");
    let soon = store_at(directory(0o700, Ok(None)), 100 << 20);
    check(
        &soon,
        Verdict::Warning,
        &["100 MiB free"],
        "free some space",
    );
}

#[test]
fn a_store_that_cannot_be_written_has_failed() {
    let missing = |writable| Place::Nothing {
        parent: "/srv".into(),
        writable,
    };
    let made = store_at(missing(true), 5 << 30);
    check(&made, Verdict::Ok, &["/srv/w will be made"], "");
    let not_made = store_at(missing(false), 5 << 30);
    check(&not_made, Verdict::Failed, &["write to /srv"], "--store");
    let read_only = Place::Directory {
        writable: false,
        mode: 0o700,
        holder: Ok(None),
    };
    let words = ["may not write to /srv/w"];
    check(
        &store_at(read_only, 5 << 30),
        Verdict::Failed,
        &words,
        "--store",
    );
    let file = store_at(Place::Other, 5 << 30);
    check(&file, Verdict::Failed, &["no directory"], "--store");
    let hidden = store_at(Place::Unknown("denied".into()), 0);
    check(&hidden, Verdict::Failed, &["denied"], "this user");
}

#[test]
fn a_port_in_use_is_good_when_this_node_has_it() {
    let own = Some(uri(Role::Worker, "w1"));
    let free = |addr| port(&PortSeen::Free(socket_addr(addr)), &own);
    check(&free("0.0.0.0:7"), Verdict::Ok, &["0.0.0.0:7 is free"], "");
    check(
        &free("127.0.0.1:7"),
        Verdict::Ok,
        &["only this machine"],
        "",
    );
    let held = |uri: &NodeUri, listen: &str| {
        let seen = PortSeen::InUse {
            addr: socket_addr("127.0.0.1:7"),
            socket: Some("/run/w.sock".into()),
            daemon: Ok(DaemonSaid {
                uri: uri.to_string(),
                listen: listen.into(),
            }),
        };
        port(&seen, &own)
    };
    let w1 = uri(Role::Worker, "w1");
    check(
        &held(&w1, "127.0.0.1:7"),
        Verdict::Ok,
        &["this node itself"],
        "",
    );
    check(&held(&w1, "[::]:7"), Verdict::Ok, &["this node itself"], "");
    let elsewhere = held(&w1, "127.0.0.1:8");
    let words = ["another process", "/run/w.sock"];
    check(&elsewhere, Verdict::Failed, &words, "--listen 127.0.0.1:8");
    let other = held(&uri(Role::Worker, "w2"), "127.0.0.1:7");
    check(
        &other,
        Verdict::Failed,
        &["worker/w2", "another node"],
        "--listen",
    );
}

#[test]
fn a_port_that_cannot_be_had_has_failed() {
    let seen = PortSeen::InUse {
        addr: socket_addr("127.0.0.1:7"),
        socket: Some("/run/w.sock".into()),
        daemon: Err("no such file".into()),
    };
    let words = ["in use by another process", "/run/w.sock", "no such file"];
    check(
        &port(&seen, &None),
        Verdict::Failed,
        &words,
        "ss -ulpn 'sport = :7'",
    );
    let refused = PortSeen::Refused(BindError::Throwaway {
        addr: socket_addr("0.0.0.0:7"),
        cluster: "throwaway.larder.invalid".into(),
    });
    check(
        &port(&refused, &None),
        Verdict::Failed,
        &["throw-away"],
        "certs init",
    );
}

#[test]
fn small_buffers_are_a_warning_with_the_sysctl() {
    let granted = |len| {
        buffers(&Ok(Buffers {
            receive: len,
            send: 4 << 20,
        }))
    };
    check(&granted(4 << 20), Verdict::Ok, &["4 MiB to receive"], "");
    let words = ["208 KiB to receive", "lose packets"];
    check(&granted(208 << 10), Verdict::Warning, &words, "sysctl -w");
    check(&buffers(&Err("no".into())), Verdict::Failed, &["no"], "");
}

fn timed_out() -> LinkError {
    LinkError::Dial {
        addr: "c1:7457".into(),
        reason: DialFailure::Timeout(DIAL_TIMEOUT),
    }
}

fn failure(error: LinkError, knock: Knock) -> Finding {
    reach(&Reach::Failed { error, knock }, false)
}

#[test]
fn silence_is_told_from_a_closed_port_and_from_a_path_that_loses_long_packets() {
    let silent = failure(timed_out(), Knock::Silent);
    check(&silent, Verdict::Failed, &["no answer at all"], "firewall");
    let closed = failure(timed_out(), Knock::Refused);
    check(
        &closed,
        Verdict::Failed,
        &["nobody listens"],
        "start the node",
    );
    let cut = failure(timed_out(), Knock::Unroutable("no route".into()));
    check(&cut, Verdict::Failed, &["no route"], "ip route get");
    let half = failure(timed_out(), Knock::Answered);
    check(&half, Verdict::Failed, &["no handshake", "3.0 s"], "MTU");
}

#[test]
fn every_way_to_be_refused_has_its_own_hint() {
    let refused = |error| failure(error, Knock::Answered);
    let peer = refused(LinkError::PeerUntrusted(Untrusted::Expired));
    let words = ["this node refuses the peer", "expired"];
    check(&peer, Verdict::Failed, &words, "certs issue --force");
    let own = refused(LinkError::SelfUntrusted(Untrusted::UnknownCa));
    let words = ["the peer refuses this node", "unknown CA"];
    check(&own, Verdict::Failed, &words, "ca.pem");
    let role = refused(LinkError::WrongNode {
        uri: uri(Role::Worker, "w1"),
        wanted: Wanted::Coordinator,
    });
    check(&role, Verdict::Failed, &["worker/w1 answers"], "--peer");
    let version = refused(LinkError::OtherVersion);
    check(
        &version,
        Verdict::Failed,
        &["version"],
        "update the older end",
    );
    let busy = refused(LinkError::Dial {
        addr: "c1:7457".into(),
        reason: DialFailure::Busy,
    });
    check(
        &busy,
        Verdict::Failed,
        &["no more connections"],
        "larder status",
    );
    let closed = refused(LinkError::Closed(CloseCode::Draining));
    check(
        &closed,
        Verdict::Failed,
        &["draining"],
        "log of the other node",
    );
    check(
        &no_coordinator(),
        Verdict::Warning,
        &["none was tried"],
        "--coordinator",
    );
}

#[test]
fn a_socket_that_cannot_reach_an_address_says_how_to_listen() {
    let loopback = reach(&Reach::LoopbackOnly, false);
    check(
        &loopback,
        Verdict::Failed,
        &["loopback"],
        "--listen '[::]:PORT'",
    );
    let family = reach(&Reach::OtherFamily, false);
    check(&family, Verdict::Failed, &["IPv4"], "IPv6");
    let knocked = reach(&Reach::Knocked(Knock::Answered), false);
    check(&knocked, Verdict::Skipped, &["QUIC answers"], "");
    let knocked = reach(&Reach::Knocked(Knock::Silent), false);
    check(&knocked, Verdict::Failed, &["no answer"], "firewall");
}

fn up(addr: &str) -> AddrSeen {
    AddrSeen {
        addr: socket_addr(addr),
        reach: Reach::Up {
            uri: uri(Role::Coordinator, "c1"),
            agent: "larder/0".into(),
            took: Duration::from_micros(4_250),
            rtt: Duration::from_millis(12),
        },
        session: None,
    }
}

fn at(given: &str, addrs: Vec<AddrSeen>) -> Vec<Finding> {
    target(&TargetSeen {
        given: given.parse().expect("an address"),
        addrs: Ok(addrs),
    })
}

#[test]
fn an_address_that_is_down_beside_one_that_is_up_is_a_warning() {
    let down = || AddrSeen {
        addr: socket_addr("[2001:db8::1]:7457"),
        reach: Reach::Failed {
            error: timed_out(),
            knock: Knock::Silent,
        },
        session: None,
    };
    let both = at("c1:7457", vec![down(), up("192.0.2.1:7457")]);
    check(&both[0], Verdict::Ok, &["2001:db8::1, 192.0.2.1"], "");
    check(&both[1], Verdict::Warning, &["another address"], "firewall");
    check(&both[2], Verdict::Ok, &["4.2 ms", "12 ms", "larder/0"], "");
    let about = both[2].about.as_deref();
    assert_eq!(about, Some("c1:7457 at 192.0.2.1"));
    let one = at("c1:7457", vec![down()]);
    assert_eq!(one[1].verdict, Verdict::Failed);
}

#[test]
fn a_name_shows_what_it_has_and_what_is_not_tried() {
    let other = || AddrSeen {
        addr: socket_addr("[2001:db8::1]:7457"),
        reach: Reach::OtherFamily,
        session: None,
    };
    let some = at("c1:7457", vec![other(), up("192.0.2.1:7457")]);
    check(&some[0], Verdict::Ok, &["2001:db8::1 (not tried"], "");
    assert_eq!(some[1].verdict, Verdict::Skipped);
    let none = at("c1:7457", vec![other()]);
    check(&none[0], Verdict::Failed, &["not tried"], "[::]:PORT");
    assert_eq!(at("192.0.2.1:7457", vec![up("192.0.2.1:7457")]).len(), 1);
    for error in [
        NoAddrs::Refused("unknown".into()),
        NoAddrs::Silent(Duration::ZERO),
    ] {
        let unknown = TargetSeen {
            given: "no.such.host:7457".parse().expect("an address"),
            addrs: Err(error),
        };
        let found = target(&unknown);
        check(&found[0], Verdict::Failed, &["no.such.host"], "getent");
    }
}

fn path(mtu: u16, lost: u64) -> Path {
    Path {
        rtt: Duration::from_millis(10),
        mtu,
        sent: 40,
        lost,
        probes: 5,
    }
}

#[test]
fn a_path_that_takes_no_longer_packets_is_a_warning() {
    check(&mtu(&path(1_452, 0)), Verdict::Ok, &["1452"], "");
    check(&mtu(&path(1_200, 0)), Verdict::Warning, &["1200"], "tunnel");
}

#[test]
fn loss_is_a_warning_and_no_answer_has_failed() {
    let burst = |took_ms: &[u64]| Burst {
        asked: 4,
        took: took_ms
            .iter()
            .map(|ms| Duration::from_millis(*ms))
            .collect(),
        error: Some("too late".into()),
    };
    let judged = |took_ms: &[u64], lost| loss(&burst(took_ms), Some(&path(1_452, lost)));
    let good = judged(&[10, 11, 10, 300], 0);
    check(&good, Verdict::Ok, &["none of 40", "300 ms"], "");
    let sent = judged(&[10, 11, 10, 12], 3);
    check(&sent, Verdict::Warning, &["3 of 40"], "congested");
    let back = judged(&[10, 46, 50, 300], 0);
    let words = ["3 of 4 answers took longer than 45 ms", "300 ms"];
    check(&back, Verdict::Warning, &words, "on the way back");
    let some = judged(&[10, 10, 10], 0);
    check(&some, Verdict::Failed, &["3 of 4", "too late"], "congested");
    let ended = loss(&burst(&[10; 4]), None);
    check(&ended, Verdict::Warning, &["ended"], "log");
}

#[test]
fn a_clock_behind_the_coordinators_is_a_warning() {
    let judged = |published| {
        newest(Newest {
            published_unix_ms: published,
            now_unix_ms: 1_000_000,
        })
    };
    check(&judged(5), Verdict::Ok, &["1970-01-01T00:00:00Z"], "");
    check(&judged(1_000_000 + CLOCK_SLACK_MS), Verdict::Ok, &[], "");
    let behind = judged(1_030_000);
    check(&behind, Verdict::Warning, &["30 s ahead"], "timedatectl");
}

#[test]
fn a_coordinator_without_proof_has_failed_and_one_without_a_catalog_is_a_warning() {
    let unproven = head_key(&HeadSeen::Unproven("no pinned key".into()));
    check(&unproven, Verdict::Failed, &["no pinned key"], "head_keys");
    let empty = head_key(&HeadSeen::NoCatalog);
    check(&empty, Verdict::Warning, &["no catalog"], "--store none");
}

#[test]
fn a_dial_back_says_where_this_node_is_seen() {
    let met = |reached, local: &str| {
        dial_back(&DialBackSeen::Met {
            asked: socket_addr("192.0.2.1:7458"),
            seen: socket_addr("[::ffff:192.0.2.1]:7458"),
            local: local.parse().ok(),
            reached,
        })
    };
    let good = met(Some(true), "192.0.2.1");
    check(
        &good,
        Verdict::Ok,
        &["reaches this node at 192.0.2.1:7458"],
        "",
    );
    assert!(!good.finding.contains("NAT"), "{good:?}");
    let words = ["does not reach", "NAT", "10.0.0.1 is seen as 192.0.2.1"];
    check(
        &met(Some(false), "10.0.0.1"),
        Verdict::Warning,
        &words,
        "UDP to port 7458",
    );
    let late = met(None, "192.0.2.1");
    check(
        &late,
        Verdict::Skipped,
        &["not tried now"],
        "try again in 5 s",
    );
    check(
        &dial_back(&DialBackSeen::Unknown),
        Verdict::Skipped,
        &["version"],
        "",
    );
    let failed = dial_back(&DialBackSeen::Failed("gone".into()));
    check(&failed, Verdict::Skipped, &["gone"], "");
}
