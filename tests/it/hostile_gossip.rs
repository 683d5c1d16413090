//! Gossip from those who mean harm: a worker with a good certificate that says what it likes, and
//! whoever has none.
//!
//! The victim is a real process; the others are bare quinn within the test. Nothing here depends
//! on how fast anything is: what one member may cost is bounded by the time that has passed.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use larder::answer::{Answer, Failure, Query, Target};
use larder::api::Api;
use larder::bridge::http::HttpClient;
use larder::catalog::HeadVerifier;
use larder::clock;
use larder::identity::{NodeId, NodeUri};
use larder::proto::gossip::{Config, Gossip, Input, Output, Remembered};
use larder::proto::limit::{MAX_GOSSIP_BURST, MAX_GOSSIP_PACKET, MAX_GOSSIP_PER_SEC};
use larder::proto::wire::{ALPN, Hello, Request};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::hostile::{provider, runtime};
use crate::membership::metrics;
use crate::membership::{finds, up};
use crate::peers::{body, published};
use crate::site::{Daemon, PATIENCE, Site};

/// The first byte of a datagram of the membership.
const MEMBERSHIP: u8 = 1;

/// Where the parts of such a datagram end, with IPv4 addresses: who sends it, in which
/// incarnation, to whom. A member ends with its generation, eight bytes.
const SOURCE_END: usize = 1 + MEMBER_LEN;
const INCARNATION_END: usize = SOURCE_END + 2;
const MEMBER_LEN: usize = 16 + 1 + 4 + 2 + 8;

/// The message that carries news and asks for nothing.
const GOSSIP: u8 = 9;

const STATES: [u8; 3] = [0, 1, 2];
const DOWN: u8 = 2;
const ALIVE: u8 = 0;

/// How often the victim has to take a new generation before the storm ends: the pauses between
/// them have begun to grow by then.
const LIVES: usize = 3;

/// Packets at once: many times what one member may send.
const FLOOD: usize = 10 * MAX_GOSSIP_BURST as usize;

/// Says yes to every certificate: a hostile node does not care who is there.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 alone".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        let algorithms = provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// A connection to a worker over which anything can be sent.
struct Intruder {
    runtime: Runtime,
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
}

impl Intruder {
    /// Dials with the identity in `certs`, or with none. With TLS 1.3 who dials is through before
    /// it is refused.
    fn dial(certs: Option<&str>, addr: &str) -> Result<Self, quinn::ConnectionError> {
        let runtime = runtime();
        let (endpoint, connection) = runtime.block_on(async {
            let any = "127.0.0.1:0".parse().expect("an address");
            let endpoint = quinn::Endpoint::client(any).expect("a port");
            let addr = addr.parse().expect("an address");
            let connecting = endpoint.connect_with(client_config(certs), addr, "any.name");
            let connection = connecting.expect("an address").await?;
            Ok::<_, quinn::ConnectionError>((endpoint, connection))
        })?;
        Ok(Self {
            runtime,
            endpoint,
            connection,
        })
    }

    /// Dials and says hello, as a member does.
    fn join(certs: &str, addr: &str) -> Self {
        let intruder = Self::dial(Some(certs), addr).expect("a good certificate");
        let hello = Request::Hello(Hello {
            agent: "hostile".into(),
        });
        intruder.runtime.block_on(async {
            let (mut send, mut recv) = intruder.connection.open_bi().await.expect("a stream");
            let frame = hello.to_frame().expect("small");
            send.write_all(&frame).await.expect("sent");
            send.finish().expect("open");
            recv.read_to_end(1 << 20).await.expect("a welcome");
        });
        intruder
    }

    fn addr(&self) -> SocketAddr {
        self.endpoint.local_addr().expect("bound")
    }

    /// Sends a datagram when there is room for it.
    fn send(&self, bytes: impl Into<Bytes>) {
        let sent = self.connection.send_datagram_wait(bytes.into());
        self.runtime.block_on(sent).expect("it is connected");
    }

    /// The next datagram.
    fn hear(&self) -> Bytes {
        // A timeout has to be made within the runtime.
        let heard = async { timeout(PATIENCE, self.connection.read_datagram()).await };
        let heard = self.runtime.block_on(heard);
        heard.expect("it speaks").expect("it is connected")
    }

    /// All that has come already.
    fn heard(&self) -> Vec<Bytes> {
        self.runtime.block_on(async {
            let mut all = Vec::new();
            while let Ok(Ok(one)) = timeout(Duration::ZERO, self.connection.read_datagram()).await {
                all.push(one);
            }
            all
        })
    }
}

fn client_config(certs: Option<&str>) -> quinn::ClientConfig {
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut tls = match certs {
        None => tls.with_no_client_auth(),
        Some(certs) => {
            let dir = Path::new(certs);
            let chain = CertificateDer::pem_file_iter(dir.join("cert.pem")).expect("there");
            let chain = chain.collect::<Result<_, _>>().expect("PEM");
            let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).expect("PEM");
            tls.with_client_auth_cert(chain, key).expect("a pair")
        }
    };
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = QuicClientConfig::try_from(tls).expect("a suite");
    quinn::ClientConfig::new(Arc::new(crypto))
}

/// Knows no key.
struct Keyless;

impl HeadVerifier for Keyless {
    fn verify(&self, _: &[u8], _: &[u8; 64]) -> bool {
        false
    }
}

/// The machine of an honest member, which keeps the hostile one in the cluster. What it would say
/// to others than the victim is not sent.
struct Mask {
    intruder: Intruder,
    machine: Gossip,
    victim: NodeId,
    /// What the victim last said of itself, as bytes of a member.
    shown: [u8; MEMBER_LEN],
    /// Sources of packets, as they were last sent.
    header: Vec<u8>,
    /// The victim's packets.
    records: Vec<Bytes>,
    /// Its generations.
    lives: Vec<u64>,
}

impl Mask {
    /// Joins by the victim, as any worker does.
    fn put_on(site: &Site, name: &str, victim: &Daemon) -> Self {
        let intruder = Intruder::join(&site.identity("worker", name), victim.addr());
        let config = Config {
            id: id(name),
            addr: intruder.addr(),
            seeds: Vec::new(),
            remembered: Remembered::default(),
            seed: [7; 32],
        };
        let mut mask = Self {
            intruder,
            machine: Gossip::new(config, Arc::new(Keyless)),
            victim: id("victim"),
            shown: [0; MEMBER_LEN],
            header: Vec::new(),
            records: Vec::new(),
            lives: Vec::new(),
        };
        mask.handle(Input::Start);
        mask.handle(Input::Reached {
            seed: victim.addr(),
            node: mask.victim,
            addr: Some(victim.addr().parse().expect("an address")),
            others: &[],
        });
        while mask.lives.is_empty() {
            let packet = mask.intruder.hear();
            mask.take(packet);
        }
        mask
    }

    fn handle(&mut self, input: Input<'_>) {
        for output in self.machine.handle(input, clock::now()) {
            if let Output::Send { to, bytes } = output
                && to.id == self.victim
            {
                if bytes[0] == MEMBERSHIP {
                    self.header = bytes[..INCARNATION_END].to_vec();
                }
                self.intruder.send(bytes);
            }
        }
    }

    fn take(&mut self, packet: Bytes) {
        let from = self.victim;
        self.handle(Input::Datagram {
            from,
            bytes: &packet,
        });
        if packet[0] != MEMBERSHIP {
            return;
        }
        self.shown = packet[1..SOURCE_END].try_into().expect("a member");
        let generation = generation_of(&self.shown);
        if self.lives.last().is_none_or(|last| generation > *last) {
            self.lives.push(generation);
        }
        self.records.push(packet);
    }

    /// Answers what has come, so that the others do not hold it for dead.
    fn live(&mut self) {
        for packet in self.intruder.heard() {
            self.take(packet);
        }
        self.handle(Input::Tick);
    }

    /// Says that the victim has died in lives that it has not had, the next one among them.
    fn storm(&mut self) {
        let next = generation_of(&self.shown) + 1;
        let highest = STATES.map(|state| (u64::MAX, state));
        let storm = [&highest[..], &[(next, ALIVE), (next, DOWN)]].concat();
        self.intruder.send(self.gossip(&storm));
        self.live();
    }

    /// A packet to the victim that says of it what `updates` says: generation and state.
    fn gossip(&self, updates: &[(u64, u8)]) -> Vec<u8> {
        let mut packet = [&self.header[..], &self.shown, &[GOSSIP]].concat();
        packet.extend((updates.len() as u16).to_be_bytes());
        for (generation, state) in updates {
            let (member, _) = self.shown.split_at(MEMBER_LEN - 8);
            packet.extend(member);
            packet.extend(generation.to_be_bytes());
            packet.extend([0, 0, *state]);
        }
        packet
    }
}

fn generation_of(member: &[u8; MEMBER_LEN]) -> u64 {
    let (_, generation) = member.split_last_chunk().expect("it ends with it");
    u64::from_be_bytes(*generation)
}

fn id(name: &str) -> NodeId {
    let uri = NodeUri::new("test.example", larder::identity::Role::Worker, name);
    uri.expect("a good name").id()
}

/// Asks the victim's local socket.
struct Insight(Runtime);

impl Insight {
    fn new() -> Self {
        Self(runtime())
    }

    /// A strict read.
    #[track_caller]
    fn reads(&self, node: &Daemon) {
        let query = Query::strict(Target::Name("daily".parse().expect("a name")));
        let read = async { HttpClient::connect(node.socket()).await?.get(query).await };
        let answer: Result<Answer, Failure> = self.0.block_on(read);
        let spec = answer.expect("an answer").spec.expect("present");
        assert_eq!(spec.bytes(), body().as_bytes());
    }

    /// Its metrics.
    fn metrics(node: &Daemon) -> Metrics {
        Metrics(metrics(node))
    }

    /// Reads strictly and does `more` until the metrics are as wanted.
    fn until(
        &self,
        node: &Daemon,
        mut more: impl FnMut(),
        is_it: impl Fn(&Metrics) -> bool,
    ) -> Metrics {
        let began = Instant::now();
        loop {
            self.reads(node);
            more();
            let metrics = Self::metrics(node);
            if is_it(&metrics) {
                return metrics;
            }
            assert!(began.elapsed() < PATIENCE, "{}", metrics.0);
        }
    }
}

/// Prometheus text.
struct Metrics(String);

impl Metrics {
    fn of(&self, name: &str) -> u64 {
        let mut lines = self.0.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().expect("a number"))
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.of(&format!(
            "larder_gossip_dropped_total{{reason=\"{reason}\"}}"
        ))
    }
}

/// What is no packet: nothing, noise, every beginning of a good one, and one with more behind it
/// than may be sent.
fn garbage(good: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![vec![9; 40], vec![MEMBERSHIP; 60], vec![2], vec![0xff; 1]];
    all.extend((1..good.len()).map(|len| good[..len].to_vec()));
    let mut long = good.to_vec();
    long.resize(MAX_GOSSIP_PACKET + 1, 0);
    all.push(long);
    all
}

/// A good packet with one byte changed, each in turn.
fn altered(good: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..good.len()).map(|place| {
        let mut packet = good.to_vec();
        packet[place] ^= 0x55;
        packet
    })
}

#[test]
fn a_hostile_member_costs_its_victim_a_bounded_part_of_its_time_and_none_of_its_answers() {
    let site = Site::new();
    let (coordinator, honest) = published(&site);
    let began = Instant::now();
    let victim = site.worker("victim", &coordinator, &[]);
    finds(&victim, honest.addr());
    let insight = Insight::new();
    insight.reads(&victim);

    let mut mask = Mask::put_on(&site, "evil", &victim);
    // A storm of generations.
    while mask.lives.len() <= LIVES {
        mask.storm();
        insight.reads(&victim);
        assert!(began.elapsed() < PATIENCE * 2, "it takes no new generation");
    }

    // Its own packets come back to it, and it is said to have sent others.
    for record in std::mem::take(&mut mask.records) {
        mask.intruder.send(record);
    }
    let good = mask.gossip(&[]);
    for packet in garbage(&good).into_iter().chain(altered(&good)) {
        mask.intruder.send(packet);
    }
    for _ in 0..FLOOD {
        mask.intruder.send(good.clone());
    }
    // Most of it came while nothing was taken any more, so some of each comes again; and the storm
    // goes on for as long as the victim takes to count.
    let forged = [&[MEMBERSHIP], &mask.shown[..], &good[SOURCE_END..]].concat();
    let mut turns = 0_u64;
    let more = || {
        turns += 1;
        // One at a time: what is taken of a member is what comes first.
        match turns % 8 {
            0 => mask.intruder.send(vec![9; 40]),
            1 => mask.intruder.send(forged.clone()),
            _ => mask.storm(),
        }
    };
    let reasons = ["malformed", "forged", "throttled", "too-new"];
    let metrics = insight.until(&victim, more, |metrics| {
        let all_dropped = reasons.iter().all(|reason| metrics.dropped(reason) > 0);
        all_dropped && metrics.of("larder_gossip_renewals_total") >= LIVES as u64
    });

    // Each of these bounds holds at any time, however long all that has taken.
    let seconds = began.elapsed().as_secs() + 1;
    let renewals = metrics.of("larder_gossip_renewals_total");
    assert!(renewals <= seconds, "{renewals} in {seconds} s");
    let taken = metrics.of("larder_gossip_taken_total") - metrics.dropped("throttled");
    let per_member = u64::from(MAX_GOSSIP_BURST) + u64::from(MAX_GOSSIP_PER_SEC) * seconds;
    assert!(taken <= 2 * per_member, "{taken} in {seconds} s");
    // The honest one is there still, or again.
    let again = Instant::now();
    while !up(&site, &victim).contains(&honest.addr().to_owned()) {
        assert!(again.elapsed() < PATIENCE, "{}", victim.log());
    }
    insight.reads(&victim);
    assert!(!victim.log().contains("panicked"), "{}", victim.log());
    victim.stop();
}

#[test]
fn who_has_no_certificate_of_the_cluster_is_heard_by_nobody() {
    let site = Site::new();
    let (coordinator, honest) = published(&site);
    honest.stop();
    let victim = site.worker("victim", &coordinator, &[]);
    let insight = Insight::new();
    site.found("other", "test.example");
    let stranger = site.identity_of("other", "worker", "evil");

    let noise = [
        vec![9; 40],
        vec![MEMBERSHIP; 65],
        vec![2, 0],
        vec![0xff; 1_200],
    ];
    for certs in [None, Some(&*stranger)] {
        // It may have sent something before it hears that it is refused.
        let refused = match Intruder::dial(certs, victim.addr()) {
            Ok(intruder) => {
                for packet in &noise {
                    let _ = intruder.connection.send_datagram(packet.clone().into());
                }
                let closed = async { timeout(PATIENCE, intruder.connection.closed()).await };
                intruder.runtime.block_on(closed).expect("refused")
            }
            Err(refused) => refused,
        };
        let said = refused.to_string();
        assert!(said.contains("certificate"), "{said}");
        insight.reads(&victim);
    }
    // And what is no QUIC, or begins like it: a long header, of this version and of another.
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    for (first, version) in [(0xc0, 1), (0xc0, 0x0a0a_0a0a_u32), (0x40, 1), (0, 0)] {
        let head = [&[first], &u32::to_be_bytes(version)[..]].concat();
        for packet in &noise {
            let packet = [&head[..], packet].concat();
            socket.send_to(&packet, victim.addr()).expect("sent");
        }
    }
    // Nor is a reader, whose certificate is good, a member.
    let reader = Intruder::join(&site.identity("reader", "r"), victim.addr());
    for packet in &noise {
        // Refused by quinn where it is too long.
        let _ = reader.connection.send_datagram(packet.clone().into());
    }

    // A member is heard, and nothing else was.
    victim.says(&["looking for other workers"]);
    let member = Intruder::join(&site.identity("worker", "w"), victim.addr());
    member.send(vec![9; 40]);
    let metrics = insight.until(&victim, || {}, |metrics| metrics.dropped("malformed") > 0);
    assert_eq!(metrics.of("larder_gossip_taken_total"), 1, "{}", metrics.0);
    assert_eq!(metrics.of("larder_handshakes_failed_total"), 2);
    assert_eq!(up(&site, &victim), [""; 0]);
    assert!(!victim.log().contains("panicked"), "{}", victim.log());
    victim.stop();
}
