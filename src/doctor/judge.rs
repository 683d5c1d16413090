//! What an observation means, and what to do about it.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::seen::{
    AddrSeen, Burst, ClockSeen, DialBackSeen, HeadSeen, IdentitySeen, Newest, NoAddrs, Place,
    PortSeen, Reach, SessionSeen, StoreSeen, TargetSeen,
};
use super::{Check, Finding, Verdict};
use crate::config::Address;
use crate::identity::{NodeUri, Role};
use crate::net::{BindError, Buffers, DialFailure, Knock, LinkError, Path};
use crate::proto::limit::{DIAL_BACK_EVERY, DIAL_TIMEOUT};
use crate::trust::{Untrusted, Validity};

/// A certificate is to be renewed when less than this part of its validity is left: SPIRE renews at
/// a half, and a person with a year's certificate has two months.
const RENEW_BEFORE: u64 = 6;

/// No machine that runs this program has a clock before this: 2026-01-01.
const EARLIEST_UNIX_S: u64 = 1_767_225_600;

/// Below this a busy node runs out of files: connections to the socket, sled, and the rest.
const FILES_WANTED: u64 = 1_024;

/// Less free space than this is soon none: the smallest budget of a worker's store and room for
/// its pages.
const SPACE_WANTED: u64 = 128 << 20;

/// Less free space than this takes no definition of the largest size.
const SPACE_NEEDED: u64 = 32 << 20;

/// Clocks of one cluster may differ by this much without a word.
const CLOCK_SLACK_MS: u64 = 2_000;

/// An answer that takes longer than one and a half round trips and this is late: a packet of it was
/// sent again, which takes as long as the other end may hold back an acknowledgement.
const LATE_SLACK: Duration = Duration::from_millis(30);

/// So many answers of a burst may be late without a word.
const LATE_ALLOWED: usize = 2;

const ISSUE: &str = "`larder certs issue` makes one; give it with `--certs DIR` or LARDER_CERTS";

/// How things stand with the node's own certificate.
pub(super) fn identity(seen: &IdentitySeen, now_unix_s: u64) -> Finding {
    let finding = |verdict, text| Finding::new(Check::Identity, verdict, text);
    let (uri, validity, refused) = match seen {
        IdentitySeen::Missing { searched } => {
            let text = format!(
                "no identity directory was found, looked in {}",
                list(searched)
            );
            return finding(Verdict::Failed, text).hint(ISSUE);
        }
        IdentitySeen::Unusable { error, hint } => {
            return finding(Verdict::Failed, error.clone()).hint(*hint);
        }
        IdentitySeen::Loaded {
            uri,
            validity,
            refused,
        } => (uri, *validity, *refused),
    };
    if let Some(reason) = refused {
        let dates = validity.map_or_else(String::new, |validity| format!(" ({})", dates(validity)));
        let text = format!("peers will refuse {uri}: {reason}{dates}");
        let hint = match reason {
            Untrusted::NotYetValid | Untrusted::Expired => {
                format!(
                    "{}; this machine's clock says {}",
                    reason.hint(),
                    date(now_unix_s)
                )
            }
            _ => reason.hint().to_owned(),
        };
        return finding(Verdict::Failed, text).hint(hint);
    }
    let Some(validity) = validity else {
        return finding(Verdict::Ok, uri.to_string());
    };
    let left = validity.not_after_unix_s.saturating_sub(now_unix_s);
    let whole = validity
        .not_after_unix_s
        .saturating_sub(validity.not_before_unix_s);
    let until = date(validity.not_after_unix_s);
    let text = format!("{uri}, valid until {until} ({} left)", span(left));
    match left < whole / RENEW_BEFORE {
        true => finding(Verdict::Warning, text).hint(
            "issue a new one with `larder certs issue --force`; a node that runs takes it without a restart",
        ),
        false => finding(Verdict::Ok, text),
    }
}

/// Whether the clocks are good enough for certificates and leases.
pub(super) fn clock(seen: &ClockSeen) -> Finding {
    let finding = |verdict, text: String| Finding::new(Check::Clock, verdict, text);
    let now = date(seen.unix_s);
    if !seen.boot_clock {
        return finding(Verdict::Failed, "the boot clock does not run".into()).hint(
            "leases need CLOCK_BOOTTIME: Linux 2.6.39 or newer, and no sandbox that hides it",
        );
    }
    if seen.unix_s < EARLIEST_UNIX_S {
        return finding(Verdict::Failed, format!("the wall clock says {now}"))
            .hint("set the clock, for example with `timedatectl set-ntp true`: no certificate is valid then");
    }
    if !seen.boot_id {
        let text = format!("{now}; the boot id cannot be read, or the boot clock is shifted");
        return finding(Verdict::Warning, text).hint(
            "mount /proc and use no time namespace; until then a worker that has just started asks the coordinator once before it answers bounded reads",
        );
    }
    finding(
        Verdict::Ok,
        format!("{now}, boot clock and boot id can be read"),
    )
}

/// Whether enough files may be open; `None`: without a limit.
pub(super) fn files(limit: Option<u64>) -> Finding {
    match limit {
        None => Finding::new(Check::Files, Verdict::Ok, "no limit"),
        Some(limit) if limit >= FILES_WANTED => Finding::new(
            Check::Files,
            Verdict::Ok,
            format!("{limit} may be open in this process"),
        ),
        Some(limit) => {
            let text =
                format!("only {limit} may be open in this process, {FILES_WANTED} are wanted");
            Finding::new(Check::Files, Verdict::Warning, text)
                .hint("`ulimit -n 4096`, or `LimitNOFILE=4096` in the unit of systemd")
        }
    }
}

/// Whether the store's directory can be used by a node of `role`.
pub(super) fn store(seen: &StoreSeen, role: Role) -> Finding {
    let finding = |verdict, text: String| Finding::new(Check::Store, verdict, text);
    let dir = seen.dir.display();
    let (mut text, mode) = match &seen.place {
        Place::Unknown(error) => {
            return finding(Verdict::Failed, format!("{dir} cannot be seen: {error}"))
                .hint("check that this user may enter the directories above it");
        }
        Place::Other => {
            return finding(Verdict::Failed, format!("{dir} is no directory"))
                .hint("name another one with `--store`");
        }
        Place::Nothing { parent, writable } => {
            let parent = parent.display();
            if !writable {
                let text = format!("{dir} does not exist, and this user may not write to {parent}");
                return finding(Verdict::Failed, text)
                    .hint("make it for this user, or name another one with `--store`");
            }
            (format!("{dir} will be made"), None)
        }
        Place::Directory {
            writable: false, ..
        } => {
            return finding(Verdict::Failed, format!("this user may not write to {dir}")).hint(
                "give it to the user that runs the node, or name another one with `--store`",
            );
        }
        Place::Directory { mode, holder, .. } => match holder {
            Err(error) => {
                let text = format!("{dir}: its lock cannot be read: {error}");
                return finding(Verdict::Failed, text)
                    .hint("run this as the user that runs the node");
            }
            Ok(Some(holder)) if holder.role.is_some_and(|of| of != role) => {
                let text = format!("{dir} is in use by {holder}, and this node is a {role}");
                return finding(Verdict::Failed, text).hint("name another one with `--store`");
            }
            Ok(Some(holder)) => (format!("{dir}, in use by {holder}"), Some(*mode)),
            Ok(None) => (format!("{dir}, held by nobody"), Some(*mode)),
        },
    };
    if let Some(free) = seen.free {
        let _ = write!(text, ", {} free", bytes(free));
        if free < SPACE_NEEDED {
            return finding(Verdict::Failed, text)
                .hint("free some space, or name a directory on another disk with `--store`");
        }
        if free < SPACE_WANTED {
            return finding(Verdict::Warning, text)
                .hint("free some space before there is none: a store that is full takes nothing");
        }
    }
    match mode.filter(|mode| mode & 0o077 != 0) {
        Some(mode) => {
            let text = format!("{text}; mode {mode:o} lets others in");
            finding(Verdict::Warning, text).hint(format!(
                "chmod 700 {dir}: definitions are not encrypted on disk"
            ))
        }
        None => finding(Verdict::Ok, text),
    }
}

/// Whether this node can have its UDP port; `own` is who it is.
pub(super) fn port(seen: &PortSeen, own: &Option<NodeUri>) -> Finding {
    let finding = |verdict, text: String| Finding::new(Check::Port, verdict, text);
    match seen {
        PortSeen::Free(addr) => {
            let text = match addr.ip().is_loopback() {
                true => format!("{addr} is free; only this machine can reach it"),
                false => format!("{addr} is free"),
            };
            finding(Verdict::Ok, text)
        }
        PortSeen::Refused(error) => {
            let text = match error {
                BindError::InUse { source, .. } | BindError::Io { source, .. } => {
                    format!("{error}: {source}")
                }
                BindError::Throwaway { .. } => error.to_string(),
            };
            finding(Verdict::Failed, text).hint(error.hint())
        }
        PortSeen::InUse {
            addr,
            socket,
            daemon,
        } => in_use(*addr, socket.as_ref(), daemon, own),
    }
}

fn in_use(
    addr: SocketAddr,
    socket: Option<&PathBuf>,
    daemon: &Result<super::seen::DaemonSaid, String>,
    own: &Option<NodeUri>,
) -> Finding {
    let finding = |verdict, text: String| Finding::new(Check::Port, verdict, text);
    let port = addr.port();
    let who = format!("`ss -ulpn 'sport = :{port}'` says who it is");
    let at = socket.map_or_else(String::new, |path| format!(" at {}", path.display()));
    match daemon {
        Ok(said) if !listens_at(&said.listen, addr) => {
            let text = format!(
                "{addr} is in use by another process: the node{at} listens on {}",
                said.listen
            );
            finding(Verdict::Failed, text).hint(format!(
                "{who}; or look at that node with `--listen {}`",
                said.listen
            ))
        }
        Ok(said) if own.as_ref().is_some_and(|own| own.to_string() != said.uri) => {
            let text = format!("{addr} is in use by {}, which is another node", said.uri);
            finding(Verdict::Failed, text)
                .hint("give each node a port of its own with `--listen`, or look at that node with its `--certs`")
        }
        Ok(said) => {
            let text = format!(
                "{addr} is in use by this node itself, which runs as {}",
                said.uri
            );
            finding(Verdict::Ok, text)
        }
        Err(reason) => {
            let text = format!(
                "{addr} is in use by another process, and no node of this machine answers{at}: {reason}"
            );
            finding(Verdict::Failed, text).hint(format!(
                "{who}; if it is the node itself, name its socket with `--socket`"
            ))
        }
    }
}

/// Whether a daemon that says that it listens at `listen` is why `addr` cannot be bound.
fn listens_at(listen: &str, addr: SocketAddr) -> bool {
    let Ok(listen) = listen.parse::<SocketAddr>() else {
        return false;
    };
    let any = listen.ip().is_unspecified() || addr.ip().is_unspecified();
    listen.port() == addr.port() && (any || listen.ip() == addr.ip())
}

/// Whether sockets get the buffers that they ask for.
pub(super) fn buffers(seen: &Result<Buffers, String>) -> Finding {
    let finding = |verdict, text: String| Finding::new(Check::Buffers, verdict, text);
    let buffers = match seen {
        Ok(buffers) => *buffers,
        Err(error) => return finding(Verdict::Failed, format!("no UDP socket: {error}")),
    };
    let text = format!(
        "{} to receive and {} to send, {} asked for",
        bytes(buffers.receive as u64),
        bytes(buffers.send as u64),
        bytes(Buffers::ASKED as u64)
    );
    match buffers.are_poor() {
        true => finding(
            Verdict::Warning,
            format!("{text}: bursts will lose packets"),
        )
        .hint(format!(
            "{}: `sysctl -w net.core.rmem_max=4194304 net.core.wmem_max=4194304`",
            Buffers::HINT
        )),
        false => finding(Verdict::Ok, text),
    }
}

/// Without a coordinator there is nothing to look at.
pub(super) fn no_coordinator() -> Finding {
    Finding::new(Check::Reach, Verdict::Warning, "no coordinator is configured, so none was tried")
        .hint("give `--coordinator HOST:7457` or LARDER_COORDINATORS: a worker does not start without one")
}

/// Everything about one configured address.
pub(super) fn target(seen: &TargetSeen) -> Vec<Finding> {
    let given = &seen.given;
    let is_name = given.host().parse::<std::net::IpAddr>().is_err();
    let addrs = match &seen.addrs {
        Ok(addrs) => addrs.as_slice(),
        Err(error) => return vec![no_addrs(given, error)],
    };
    let mut findings = Vec::new();
    if is_name || addrs.is_empty() {
        findings.push(name(given, addrs));
    }
    let another_is_up = addrs.iter().any(|at| matches!(at.reach, Reach::Up { .. }));
    for at in addrs {
        let about = match is_name {
            true => format!("{given} at {}", at.addr.ip()),
            false => given.to_string(),
        };
        findings.extend(
            addr(at, another_is_up)
                .into_iter()
                .map(|found| found.about(about.clone())),
        );
    }
    findings
}

fn no_addrs(given: &Address, error: &NoAddrs) -> Finding {
    let text = match error {
        NoAddrs::Refused(error) => format!("{} does not resolve: {error}", given.host()),
        NoAddrs::Silent(within) => format!(
            "the resolver does not answer within {} s for {}",
            within.as_secs(),
            given.host()
        ),
    };
    Finding::new(Check::Name, Verdict::Failed, text)
        .about(given.to_string())
        .hint("check the spelling, and the resolver with `getent ahosts HOST`; an IP address works without one")
}

fn name(given: &Address, addrs: &[AddrSeen]) -> Finding {
    let is_tried = |at: &&AddrSeen| !matches!(at.reach, Reach::OtherFamily | Reach::BeyondLimit);
    let shown = addrs.iter().map(|at| match at.reach {
        Reach::OtherFamily => format!("{} (not tried: this node's socket is IPv4)", at.addr.ip()),
        Reach::BeyondLimit => format!("{} (not tried: there are others before it)", at.addr.ip()),
        _ => at.addr.ip().to_string(),
    });
    let shown = shown.collect::<Vec<_>>().join(", ");
    let finding = match addrs.iter().any(|at| is_tried(&at)) {
        true => Finding::new(Check::Name, Verdict::Ok, shown),
        false if addrs.is_empty() => {
            Finding::new(Check::Name, Verdict::Failed, "it has no address")
                .hint("check the name and the resolver with `getent ahosts HOST`")
        }
        false => Finding::new(Check::Name, Verdict::Failed, shown).hint(IPV6),
    };
    finding.about(given.to_string())
}

const IPV6: &str = "listen on an IPv6 address to reach IPv6: `--listen '[::]:PORT'` does for both";

fn addr(at: &AddrSeen, another_is_up: bool) -> Vec<Finding> {
    if matches!(at.reach, Reach::BeyondLimit) {
        return Vec::new();
    }
    let mut findings = vec![reach(&at.reach, another_is_up)];
    if let Some(session) = &at.session {
        findings.extend(self::session(session));
    }
    findings
}

/// Whether an address answers. One that does not while another one of its name does costs time
/// and nothing else.
fn reach(seen: &Reach, another_is_up: bool) -> Finding {
    let finding = |verdict, text: String| Finding::new(Check::Reach, verdict, text);
    let mut found = match seen {
        Reach::Up {
            uri,
            agent,
            took,
            rtt,
        } => {
            let (took, rtt) = (millis(*took), millis(*rtt));
            let text = format!("{uri} ({agent}): handshake {took}, round trip {rtt}");
            return finding(Verdict::Ok, text);
        }
        Reach::OtherFamily | Reach::BeyondLimit => {
            let text = "not tried: this node's socket is IPv4".to_owned();
            let verdict = match another_is_up {
                true => Verdict::Skipped,
                false => Verdict::Failed,
            };
            return finding(verdict, text).hint(IPV6);
        }
        Reach::LoopbackOnly => {
            let text = "this node listens on loopback, from where no other machine is reached";
            finding(Verdict::Failed, text.into())
                .hint("listen on an address of the network: `--listen '[::]:PORT'`")
        }
        Reach::Knocked(Knock::Answered) => {
            let text = "QUIC answers; there is no handshake without an identity".to_owned();
            return finding(Verdict::Skipped, text);
        }
        Reach::Knocked(knock) => silent(knock, None),
        Reach::Failed { error, knock } => failed(error, knock),
    };
    if another_is_up {
        let secs = DIAL_TIMEOUT.as_secs();
        found.verdict = Verdict::Warning;
        let lost = format!(
            "; another address of this name answers, and a node loses up to {secs} s here first"
        );
        found.finding.push_str(&lost);
    }
    found
}

fn failed(error: &LinkError, knock: &Knock) -> Finding {
    let finding = |text: String| Finding::new(Check::Reach, Verdict::Failed, text);
    match error {
        LinkError::Dial {
            reason: DialFailure::Timeout(within),
            ..
        } => silent(knock, Some(*within)),
        LinkError::Dial {
            reason: DialFailure::Busy,
            ..
        } => finding("it takes no more connections".into())
            .hint("it is full, or it is stopping: look at `connections` in its `larder status`"),
        LinkError::WrongNode { .. } => finding(error.to_string()).hint(
            "a coordinator's address goes to `--coordinator`, a worker's to `--peer`; if the address is right, the certificate there has another role",
        ),
        LinkError::OtherVersion => finding(error.to_string())
            .hint("update the older end; or something else than larder listens there"),
        LinkError::SelfUntrusted(reason) | LinkError::PeerUntrusted(reason) => {
            finding(error.to_string()).hint(reason.hint())
        }
        error => match error.hint() {
            Some(hint) => finding(error.to_string()).hint(hint),
            None => finding(error.to_string()).hint("the log of the other node may say more"),
        },
    }
}

/// Nobody answered a dial of so long, or none was made.
fn silent(knock: &Knock, dialled: Option<Duration>) -> Finding {
    let finding = |text: String| Finding::new(Check::Reach, Verdict::Failed, text);
    match knock {
        Knock::Refused => finding("nobody listens on that UDP port (ICMP says so)".into())
            .hint("start the node there, or check the port; a firewall that rejects looks the same"),
        Knock::Unroutable(error) => finding(format!("no packet gets there: {error}"))
            .hint("check the address, the routes of this machine (`ip route get ADDR`) and its firewall"),
        Knock::Silent => finding("no answer at all".into()).hint(
            "is the node running, is the port right, and does every firewall let UDP through to it? One that drops packets, or blocks UDP, looks like this",
        ),
        Knock::Answered => {
            let within = dialled.map_or_else(String::new, |d| format!(" within {}", millis(d)));
            finding(format!("QUIC answers, but no handshake ends{within}")).hint(
                "long packets may be lost on the way back: check the MTU of tunnels; or the path, or the node, is slower than a dial waits",
            )
        }
    }
}

fn session(seen: &SessionSeen) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(path) = &seen.path {
        findings.push(mtu(path));
    }
    findings.push(loss(&seen.burst, seen.path.as_ref()));
    findings.extend(seen.newest.map(newest));
    findings.extend(seen.head.as_ref().map(head_key));
    findings.extend(seen.dial_back.as_ref().map(dial_back));
    findings
}

fn mtu(path: &Path) -> Finding {
    let mtu = path.mtu;
    let text = format!("packets of {mtu} bytes arrive");
    match mtu > Path::MIN_MTU {
        true => Finding::new(Check::Mtu, Verdict::Ok, text),
        false => Finding::new(Check::Mtu, Verdict::Warning, format!("{text}, and no longer ones"))
            .hint("a tunnel or a firewall on the way drops them; it works, and costs more packets: raise the MTU of the tunnel if you can"),
    }
}

fn loss(burst: &Burst, path: Option<&Path>) -> Finding {
    let finding = |verdict, text: String| Finding::new(Check::Loss, verdict, text);
    let hint = "is the path congested or the radio weak? A read waits for each packet that is sent again; small socket buffers lose some too, at either end";
    let (asked, answered) = (burst.asked, burst.took.len());
    if answered < asked {
        let why = burst.error.as_deref().unwrap_or("no answer");
        let text = format!("{answered} of {asked} requests were answered: {why}");
        return finding(Verdict::Failed, text).hint(hint);
    }
    let slowest = millis(burst.took.iter().max().copied().unwrap_or_default());
    let text = format!("{asked} requests were answered, the slowest in {slowest}");
    let Some(path) = path else {
        return finding(
            Verdict::Warning,
            format!("{text}, then the connection ended"),
        )
        .hint("the log of the other node may say why");
    };
    let (sent, lost) = (path.sent, path.lost);
    if lost > 0 {
        let text = format!("{lost} of {sent} packets sent were lost; {text}");
        return finding(Verdict::Warning, text).hint(hint);
    }
    // What is lost on the way back is known to the other end alone, and shows here as delay.
    let prompt = path.rtt * 3 / 2 + LATE_SLACK;
    let late = burst.took.iter().filter(|took| **took > prompt).count();
    match late > LATE_ALLOWED {
        true => {
            let text = format!(
                "{late} of {asked} answers took longer than {}, the slowest {slowest}; none of {sent} packets sent was lost",
                millis(prompt)
            );
            finding(Verdict::Warning, text).hint(format!(
                "packets are lost on the way back, or the other node is busy: {hint}"
            ))
        }
        false => finding(
            Verdict::Ok,
            format!("none of {sent} packets sent was lost; {text}"),
        ),
    }
}

/// Only one direction shows: a clock that is behind. One that is ahead looks like a quiet catalog.
fn newest(seen: Newest) -> Finding {
    let ahead = seen.published_unix_ms.saturating_sub(seen.now_unix_ms);
    let published = date(seen.published_unix_ms / 1_000);
    match ahead > CLOCK_SLACK_MS {
        true => {
            let text = format!(
                "the newest revision was published at {published} by the coordinator's clock, which is {} ahead of now here",
                span(ahead / 1_000)
            );
            Finding::new(Check::Clock, Verdict::Warning, text)
                .hint("compare the clocks of both machines, for example with `timedatectl`: certificates need them")
        }
        false => {
            let text = format!("not behind the newest revision, which is of {published}");
            Finding::new(Check::Clock, Verdict::Ok, text)
        }
    }
}

fn head_key(seen: &HeadSeen) -> Finding {
    let finding = |verdict, text: String| Finding::new(Check::HeadKey, verdict, text);
    match seen {
        HeadSeen::Proven {
            catalog,
            epoch,
            rev,
        } => finding(
            Verdict::Ok,
            format!("proven; catalog {catalog}, epoch {epoch}, revision {rev}"),
        ),
        HeadSeen::NoCatalog => finding(Verdict::Warning, "it holds no catalog and proves none".into())
            .hint("a coordinator with `--store none` only says so to whoever asks: give the address of the one that holds the catalog too"),
        HeadSeen::Unproven(reason) => finding(Verdict::Failed, format!("it is not believed: {reason}"))
            .hint("compare `head_keys` in trust.yaml with the coordinator's, or copy trust.yaml from the directory of the CA"),
    }
}

fn dial_back(seen: &DialBackSeen) -> Finding {
    let finding = |verdict, text: String| Finding::new(Check::DialBack, verdict, text);
    let (asked, seen_at, local, reached) = match seen {
        DialBackSeen::Unknown => {
            return finding(Verdict::Skipped, "that node's version does not say".into());
        }
        DialBackSeen::Failed(error) => {
            return finding(Verdict::Skipped, format!("it does not say: {error}"));
        }
        DialBackSeen::Met {
            asked,
            seen,
            local,
            reached,
        } => (asked, seen, local, reached),
    };
    let seen_at = plain(*seen_at);
    let at = plain(*asked);
    let nat = match local {
        Some(local) if local.to_canonical() != seen_at.ip() => {
            format!(
                "; there is a NAT: {} is seen as {}",
                local.to_canonical(),
                seen_at.ip()
            )
        }
        _ => String::new(),
    };
    match reached {
        Some(true) => finding(Verdict::Ok, format!("it reaches this node at {at}{nat}")),
        Some(false) => {
            let text = format!("it does not reach this node at {at}{nat}");
            let port = at.port();
            finding(Verdict::Warning, text).hint(format!(
                "let UDP to port {port} through to this machine, and forward it where there is a NAT; without that the node works, and no peer can fetch from it"
            ))
        }
        None => {
            let secs = DIAL_BACK_EVERY.as_secs();
            let text = format!("not tried now; it sees this node at {seen_at}{nat}");
            finding(Verdict::Skipped, text).hint(format!("try again in {secs} s"))
        }
    }
}

/// Without the IPv6 form that a socket for both families gives to IPv4.
fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn list(paths: &[PathBuf]) -> String {
    let paths = paths.iter().map(|path| path.display().to_string());
    paths.collect::<Vec<_>>().join(", ")
}

fn dates(validity: Validity) -> String {
    let (from, until) = (validity.not_before_unix_s, validity.not_after_unix_s);
    format!("valid from {} until {}", date(from), date(until))
}

fn date(unix_s: u64) -> String {
    let seconds = i64::try_from(unix_s).ok();
    let date = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    date.and_then(|date| date.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("second {unix_s}"))
}

/// Seconds in the unit that suits them.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A span of time in the unit that suits it.
fn millis(span: Duration) -> String {
    match span.as_micros() {
        micros @ ..10_000 => format!("{}.{} ms", micros / 1_000, micros % 1_000 / 100),
        10_000..1_000_000 => format!("{} ms", span.as_millis()),
        _ => format!("{:.1} s", span.as_secs_f64()),
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..0x10_0000 => format!("{} KiB", count >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", count >> 20),
        _ => format!("{} GiB", count >> 30),
    }
}

#[cfg(test)]
mod tests;
