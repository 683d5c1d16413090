//! Looks at the paths to other nodes.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::machine::Stand;
use super::seen::{
    AddrSeen, Burst, DialBackSeen, HeadSeen, Newest, NoAddrs, PortSeen, Reach, SessionSeen,
    TargetSeen,
};
use crate::clock;
use crate::config::Address;
use crate::identity::Role;
use crate::net::{
    Endpoint, Floor, Knock, Link, LinkError, MAX_ADDRS, Path, Patience, SessionKey, Vouch, Wanted,
    knock,
};
use crate::proto::code::Code;
use crate::proto::limit::{ANSWER_TIMEOUT, DIAL_TIMEOUT, FIRST_BYTE_EXTRA};
use crate::proto::wire::{GetBlob, GetLog, Meet, Met, Request, Response, Welcome};
use crate::spec::SpecHash;
use crate::worker::PinnedKeys;

/// How long the resolver may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a knock waits: a bit longer than a dial, so that a path which is too slow for a
/// handshake is told from one that is blocked.
const KNOCK_TIMEOUT: Duration = DIAL_TIMEOUT.saturating_add(Duration::from_millis(500));

/// Requests of a burst: one lost packet in ten shows in nine bursts of ten.
const BURST: usize = 20;

/// Between two requests of a burst, so that each is a packet of its own.
const BURST_GAP: Duration = Duration::from_millis(10);

/// How long finding out the longest packet may take: probes that are lost are sent again.
const MTU_TIMEOUT: Duration = Duration::from_secs(3);

/// How often it is looked at.
const MTU_LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long no probe is sent, beside some round trips, once the search is over.
const MTU_QUIET: Duration = Duration::from_millis(200);

/// A neighbour answers after it has dialled, and gives up after a dial's timeout.
const MEET_TIMEOUT: Duration = DIAL_TIMEOUT.saturating_add(Duration::from_secs(2));

/// One configured address.
pub(super) struct Target {
    address: Address,
    wanted: Wanted,
    stand: Arc<Stand>,
}

impl Target {
    pub(super) fn new(address: Address, wanted: Wanted, stand: Arc<Stand>) -> Self {
        Self {
            address,
            wanted,
            stand,
        }
    }

    /// Resolves it and tries every address that a node would try, beside each other.
    pub(super) async fn look(self) -> TargetSeen {
        let given = self.address.clone();
        let found = match resolve(&given).await {
            Ok(found) => found,
            Err(error) => {
                return TargetSeen {
                    given,
                    addrs: Err(error),
                };
            }
        };
        let this = Arc::new(self);
        let mut looks = Vec::new();
        let mut tried = 0;
        for addr in found {
            let passed_over = this.passed_over(addr, tried);
            tried += usize::from(passed_over.is_none());
            let this = this.clone();
            let look = tokio::spawn(async move {
                match passed_over {
                    Some(reach) => without_session(addr, reach),
                    None => this.look_at(addr).await,
                }
            });
            looks.push((addr, look));
        }
        let mut addrs = Vec::new();
        for (addr, look) in looks {
            let seen = look.await.unwrap_or_else(|error| {
                let knock = Knock::Unroutable(error.to_string());
                without_session(addr, Reach::Knocked(knock))
            });
            addrs.push(seen);
        }
        TargetSeen {
            given,
            addrs: Ok(addrs),
        }
    }

    /// Why a node does not try `addr`, after it has tried so many others.
    fn passed_over(&self, addr: SocketAddr, tried: usize) -> Option<Reach> {
        if tried >= MAX_ADDRS {
            return Some(Reach::BeyondLimit);
        }
        let local = self.stand.endpoint.as_ref()?.local_addr();
        if local.is_ipv4() && addr.is_ipv6() {
            return Some(Reach::OtherFamily);
        }
        let is_loopback = |addr: SocketAddr| addr.ip().to_canonical().is_loopback();
        (is_loopback(local) && !is_loopback(addr)).then_some(Reach::LoopbackOnly)
    }

    async fn look_at(&self, addr: SocketAddr) -> AddrSeen {
        let Some(endpoint) = &self.stand.endpoint else {
            let knock = knock(addr, KNOCK_TIMEOUT).await;
            return without_session(addr, Reach::Knocked(knock));
        };
        let witness = Arc::new(Witness::new(endpoint));
        let link = Link::vouched(endpoint, addr.to_string(), self.wanted, witness.clone());
        match dial(&link, addr).await {
            Ok(reach) => AddrSeen {
                addr,
                reach,
                session: Some(self.session(&link, addr, &witness).await),
            },
            Err(reach) => without_session(addr, reach),
        }
    }

    async fn session(&self, link: &Link, addr: SocketAddr, witness: &Witness) -> SessionSeen {
        let is_coordinator = self.wanted == Wanted::Coordinator;
        let newest = async {
            match is_coordinator {
                true => newest(link).await,
                false => None,
            }
        };
        let quality = async {
            let burst = burst(link).await;
            (burst, settled(link).await)
        };
        let dial_back = self.dial_back(link, addr);
        let ((burst, path), newest, dial_back) = tokio::join!(quality, newest, dial_back);
        SessionSeen {
            path,
            burst,
            head: is_coordinator.then(|| witness.head(link.welcome())),
            newest,
            dial_back,
        }
    }

    /// Asks to be dialled where this node listens when it runs.
    async fn dial_back(&self, link: &Link, addr: SocketAddr) -> Option<DialBackSeen> {
        let stand = &self.stand;
        if stand.uri.as_ref()?.role() != Role::Worker {
            return None;
        }
        let at = match stand.port.as_ref()? {
            PortSeen::Free(bound) => *bound,
            // A daemon that has it answers for itself.
            PortSeen::InUse { addr, .. } => *addr,
            PortSeen::Refused(_) => return None,
        };
        let at = stand.advertise.unwrap_or(at);
        let answered = match at.ip().is_unspecified() {
            true => meet_at_port(link, at.port()).await,
            false => meet(link, at).await.map(|met| (at, met)),
        };
        Some(match answered {
            Ok((asked, met)) => DialBackSeen::Met {
                asked,
                seen: met.seen,
                local: local_ip(addr),
                reached: met.reached,
            },
            Err(LinkError::Refused(refusal)) if is_unknown(refusal.code) => DialBackSeen::Unknown,
            Err(error) => DialBackSeen::Failed(error.to_string()),
        })
    }
}

fn without_session(addr: SocketAddr, reach: Reach) -> AddrSeen {
    AddrSeen {
        addr,
        reach,
        session: None,
    }
}

async fn resolve(address: &Address) -> Result<Vec<SocketAddr>, NoAddrs> {
    let text = address.to_string();
    match timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(text)).await {
        Ok(Ok(found)) => Ok(found.collect()),
        Ok(Err(error)) => Err(NoAddrs::Refused(error.to_string())),
        Err(_) => Err(NoAddrs::Silent(RESOLVE_TIMEOUT)),
    }
}

/// Dials and knocks beside each other: QUIC takes no notice of ICMP, so that a knock that is
/// refused ends the wait.
async fn dial(link: &Link, addr: SocketAddr) -> Result<Reach, Reach> {
    let began = Instant::now();
    let dialling = link.connect(Some(Duration::ZERO));
    let knocking = knock(addr, KNOCK_TIMEOUT);
    tokio::pin!(dialling, knocking);
    let mut knocked = None;
    let dialled = loop {
        tokio::select! {
            dialled = &mut dialling => break dialled,
            knock = &mut knocking, if knocked.is_none() => {
                let is_over = matches!(knock, Knock::Refused | Knock::Unroutable(_));
                knocked = Some(knock);
                if is_over {
                    break Err(silence(addr, began.elapsed()));
                }
            }
        }
    };
    let took = began.elapsed();
    if let Err(error) = dialled {
        let knock = match (knocked, &error) {
            (Some(knock), _) => knock,
            (None, LinkError::Dial { .. }) => knocking.await,
            // Whatever it says, it says something.
            (None, _) => Knock::Answered,
        };
        return Err(Reach::Failed { error, knock });
    }
    match (link.peer(), link.welcome(), link.rtt()) {
        (Some(uri), Some(welcome), Some(rtt)) => Ok(Reach::Up {
            uri,
            agent: welcome.agent,
            took,
            rtt,
        }),
        _ => Err(Reach::Failed {
            error: LinkError::Lost("it closed right after the hello".into()),
            knock: knocked.unwrap_or(Knock::Answered),
        }),
    }
}

fn silence(addr: SocketAddr, within: Duration) -> LinkError {
    LinkError::Dial {
        addr: addr.to_string(),
        reason: crate::net::DialFailure::Timeout(within),
    }
}

/// Remembers what a worker would say of the one who answers, and lets everyone pass: nothing that
/// is heard here is believed.
#[derive(Debug)]
struct Witness {
    keys: PinnedKeys,
    said: Mutex<Option<String>>,
}

impl Witness {
    fn new(endpoint: &Endpoint) -> Self {
        Self {
            keys: PinnedKeys(endpoint.identity().clone()),
            said: Mutex::default(),
        }
    }

    fn head(&self, welcome: Option<Welcome>) -> HeadSeen {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = &*said {
            return HeadSeen::Unproven(reason.clone());
        }
        let Some(welcome) = welcome else {
            return HeadSeen::Unproven("the connection ended".into());
        };
        let Some(head) = welcome.head else {
            return HeadSeen::NoCatalog;
        };
        let signed = head.signed().map_err(|error| error.to_string());
        let claimed = signed.and_then(|head| head.claimed().map_err(|error| error.to_string()));
        match claimed {
            Ok(head) => HeadSeen::Proven {
                catalog: head.catalog,
                epoch: head.epoch,
                rev: head.rev,
            },
            Err(reason) => HeadSeen::Unproven(reason),
        }
    }
}

impl Vouch for Witness {
    fn vouch(&self, session: &SessionKey, welcome: &Welcome) -> Result<(), String> {
        let reason = self.keys.vouch(session, welcome).err();
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        Ok(())
    }
}

fn patience(first_byte: Duration) -> Patience {
    Patience {
        first_byte,
        beyond_rtts: FIRST_BYTE_EXTRA,
        late: Duration::ZERO,
        floor: Floor::default(),
        dial_within: None,
    }
}

async fn ask(link: &Link, request: &Request, wait: Duration) -> Result<Response, LinkError> {
    let mut exchange = link.call(request, Bytes::new(), patience(wait)).await?;
    exchange.next().await
}

/// Asks for bytes that nobody has: the cheapest question that every node answers.
async fn burst(link: &Link) -> Burst {
    let mut asked = JoinSet::new();
    for _ in 0..BURST {
        let link = link.clone();
        asked.spawn(async move {
            let request = Request::GetBlob(GetBlob {
                hash: SpecHash::from_bytes([0; SpecHash::LEN]),
                force: true,
            });
            let began = Instant::now();
            let answer = ask(&link, &request, ANSWER_TIMEOUT).await;
            (began.elapsed(), answer)
        });
        sleep(BURST_GAP).await;
    }
    let mut burst = Burst {
        asked: BURST,
        ..Burst::default()
    };
    while let Some(joined) = asked.join_next().await {
        let Ok((took, answer)) = joined else {
            continue;
        };
        match answer {
            Ok(_) | Err(LinkError::Refused(_)) => {
                burst.took.push(took);
            }
            Err(error) => burst.error = Some(error.to_string()),
        }
    }
    burst
}

/// Waits until the search for the longest packet has ended, and looks at the path then.
async fn settled(link: &Link) -> Option<Path> {
    let give_up = Instant::now() + MTU_TIMEOUT;
    let mut path = link.path()?;
    let mut since = Instant::now();
    loop {
        sleep(MTU_LOOK_EVERY).await;
        let next = link.path()?;
        let now = Instant::now();
        if next.probes != path.probes || next.mtu != path.mtu {
            since = now;
        }
        path = next;
        // A probe counts as lost after a round trip and a bit.
        if now.duration_since(since) > MTU_QUIET + 3 * path.rtt || now > give_up {
            return Some(path);
        }
    }
}

async fn newest(link: &Link) -> Option<Newest> {
    let request = Request::GetLog(GetLog {
        name: None,
        before: None,
        limit: 1,
    });
    let Ok(Response::Log(log)) = ask(link, &request, ANSWER_TIMEOUT).await else {
        return None;
    };
    Some(Newest {
        published_unix_ms: log.entries.first()?.at_unix_ms,
        now_unix_ms: clock::unix_ms(),
    })
}

async fn meet(link: &Link, at: SocketAddr) -> Result<Met, LinkError> {
    let meet = Meet {
        addr: Some(at),
        dial_back: true,
        leaf: false,
    };
    ask_to_meet(link, meet).await
}

/// The same where others have to say first at which address they see this node.
async fn meet_at_port(link: &Link, port: u16) -> Result<(SocketAddr, Met), LinkError> {
    let nowhere = Meet {
        addr: None,
        dial_back: false,
        leaf: false,
    };
    let first = ask_to_meet(link, nowhere).await?;
    let at = SocketAddr::new(first.seen.ip().to_canonical(), port);
    Ok((at, meet(link, at).await?))
}

/// What nodes answer to a request that they do not serve.
const fn is_unknown(code: Code) -> bool {
    matches!(code, Code::BadFrame | Code::NoCatalog)
}

async fn ask_to_meet(link: &Link, meet: Meet) -> Result<Met, LinkError> {
    let request = Request::Meet(meet);
    match ask(link, &request, MEET_TIMEOUT).await? {
        Response::Met(met) => Ok(met),
        _ => Err(LinkError::Lost("the answer is to another question".into())),
    }
}

/// From which address of this machine packets to `addr` leave.
fn local_ip(addr: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match addr {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0; 16], 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(addr).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
