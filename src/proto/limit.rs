//! Every limit of the protocol, with its reason. What happens beyond one is said beside it.

use std::time::Duration;

/// Longest frame in bytes, its length field not counted: a publish of 100,000 names of ordinary
/// length fits. A longer one closes the stream with [`TooLarge`](super::code::Code::TooLarge).
pub const MAX_FRAME_LEN: u32 = 17 << 20;

/// Names in one [`Resolve`](super::wire::Resolve): what an engine asks for in one go. More is
/// refused.
pub const MAX_NAMES_PER_RESOLVE: usize = 1_024;

/// Bodies in one [`GetBlobs`](super::wire::GetBlobs). More is refused.
pub const MAX_BLOBS_PER_REQUEST: usize = 64;

/// A body that is longer shares its stream with no other, so that none waits behind it: it is left
/// out of an answer about several names, and asked for by itself.
pub const MAX_SHARED_BODY: u64 = 64 << 10;

/// Records in one [`Listing`](super::wire::Listing) or entries in one
/// [`Log`](super::wire::Log). The rest is in the next page.
pub const MAX_PAGE: usize = 10_000;

/// Hashes in one [`Have`](super::wire::Have): as many as a publish may name. More is refused.
pub const MAX_HASHES_PER_HAVE: usize = crate::catalog::MAX_NAMES_PER_PUBLISH;

/// Requests at once on a connection; QUIC holds further ones back at the sender.
pub const MAX_STREAMS: u32 = 256;

/// Connections to one endpoint: a coordinator with 10,000 workers and some room. A further one is
/// refused.
pub const MAX_CONNECTIONS: usize = 12_000;

/// Threads of one runtime for work that may block: reading and hashing what is long, and looking
/// up host names. There is one runtime for the network and one for the local socket. A look-up that
/// hangs has its thread for half a minute, and one of a few names is begun anew every few seconds;
/// more threads than this would make nothing quicker. What comes beyond them waits for one.
pub const MAX_BLOCKING_THREADS: usize = 64;

/// How long a resolve may take unless the caller says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// How long one dial may take, hello included. A silent address costs this once, then the next
/// hop is tried.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// So many times as long it may take once the other side has answered anything: it is busy, or far
/// away, and to begin anew would be more of what it is busy with.
pub const ANSWERED_DIAL: u32 = 3;

/// How long the coordinator may take to answer a resolve before the next address is asked: three
/// retransmissions at 300 ms. Where there is no other one, the question is given up after so long
/// a silence: while packets come, the answer is waited for as long as a reader is.
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(2_500);

/// How often a driver looks whether packets come over the connection of a question that has no
/// answer yet, and says so: often enough that a few that are lost do not pass for a silence.
pub const ALIVE_EVERY: Duration = ANSWER_TIMEOUT.checked_div(4).expect("4 is not 0");

/// Any other answer of the coordinator may begin this late while packets come over its connection.
/// Whoever wants the same bytes waits behind the question, so that it has to end sometime.
pub const MAX_LATE: Duration = DEFAULT_DEADLINE;

/// Questions of truth that a worker may have under way at once: half the streams of a connection,
/// so that late answers leave room for renewals. Further names wait, and are asked for together.
pub const MAX_QUESTIONS: usize = MAX_STREAMS as usize / 2;

/// A peer's first byte may take this long at least, whatever its round trip was.
pub const FIRST_BYTE_MIN: Duration = Duration::from_millis(250);

/// Added to two round trips for a peer's first byte: time to read its disk.
pub const FIRST_BYTE_EXTRA: Duration = Duration::from_millis(100);

/// A body may not come slower than this in bytes per second, counted from [`FLOOR_GRACE`] after
/// its first byte: a peer that drips is dropped. The streams of a connection share it: with n of
/// them under way, a body may take n times as long.
pub const FLOOR_BYTES_PER_SEC: u64 = 64 << 10;

/// See [`FLOOR_BYTES_PER_SEC`].
pub const FLOOR_GRACE: Duration = Duration::from_secs(1);

/// Peers asked for one hash, one after the other or hedged.
pub const MAX_PEERS_PER_FETCH: usize = 3;

/// A peer that is busy is asked after the others for this long.
pub const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// Bodies of which a worker remembers which peer gave them. The oldest go first.
pub const MAX_KNOWN_HOLDERS: usize = 1_024;

/// Workers that are no members and are known because the coordinator named them, or because a call
/// to them has not ended. Further ones are not asked.
pub const MAX_PASSING_PEERS: usize = 256;

/// Workers that get a body from the coordinator within [`SHED_WINDOW`], before others are pointed
/// at them: so many that some of them may be lost.
pub const FIRST_ASKERS: usize = 4;

/// From the first question for a body on, how long those who ask are counted: a publish reaches
/// all workers within it, also over a slow line, and workers that start together have everything.
pub const SHED_WINDOW: Duration = Duration::from_secs(30);

/// Workers that a later asker is pointed at, and that are believed from the coordinator: one, and
/// one more in case that it fails. What is named beyond it is not asked.
pub const HOLDERS_NAMED: usize = 2;

/// To so many askers a worker is named for one body; then others are,
pub const MAX_TIMES_NAMED: usize = 4;
/// unless an asker was pointed at it before: then up to so many.
pub const MAX_TIMES_NAMED_AGAIN: usize = 8;

/// Others that an asker was pointed at and that are preferred when it is pointed again.
pub const MAX_MET: usize = 16;

/// Bodies whose askers the coordinator counts. The oldest are forgotten first.
pub const MAX_ASKED_BODIES: usize = 4_096;

/// Askers of all those bodies together: about 10 MiB. The oldest bodies are forgotten first.
pub const MAX_ASKERS: usize = 65_536;

/// A worker that was pointed at others gives them this long at least before it asks the coordinator
/// after all, unless all of them have failed before; or twice what the coordinator has taken to point
/// it there, if that is more,
pub const POINTED_PATIENCE: Duration = Duration::from_secs(3);
/// and this long at most.
pub const MAX_POINTED_PATIENCE: Duration = Duration::from_secs(8);

/// If one of them says that it waits for the bytes itself, it has this long: all who wait above it
/// in the tree have come to an end of their patience by then, and asked the coordinator.
pub const HELD_PATIENCE: Duration = MAX_POINTED_PATIENCE;

/// A worker that was pointed at others asks the second one after this: as a tree passes a body on,
/// most have to wait for it themselves, and each further question costs a connection.
pub const POINTED_HEDGE: Duration = Duration::from_secs(1);

/// How long a worker holds a question for a body that is on its way to it.
pub const MAX_HOLD: Duration = MAX_POINTED_PATIENCE;

/// Questions for one body that a worker holds; a further asker is told
/// [`Busy`](super::code::Code::Busy) and asks another.
pub const MAX_GUESTS_PER_BODY: usize = 64;

/// The same for all bodies: those who ask for a whole catalog of bodies ask for many at once.
pub const MAX_GUESTS: usize = 4_096;

/// Questions for bytes that one node may have at a worker at once. A further one is told
/// [`Busy`](super::code::Code::Busy).
pub const MAX_UPLOADS_PER_NODE: usize = MAX_STREAMS as usize / 2;

/// Nodes that may ask a worker for bytes at once. A further one is told
/// [`Busy`](super::code::Code::Busy).
pub const MAX_UPLOADERS: usize = 1_024;

/// Peers asked for the catalog one after the other, before a pause: a neighbour or two are at hand
/// even in a cluster that has fallen apart.
pub const MAX_PEERS_PER_ROUND: usize = 3;

/// Whole catalogs that a worker gives at once; each may take 100 MiB of memory. A further asker
/// is told [`Busy`](super::code::Code::Busy) and asks another peer.
pub const MAX_CATALOGS_GIVEN: usize = 2;

/// The next hop is asked when the one before is slower than its usual p95, within these bounds:
/// below, a hedge would double the load of a quick LAN; above, a reader would notice.
pub const HEDGE_MIN: Duration = Duration::from_millis(20);
/// See [`HEDGE_MIN`].
pub const HEDGE_MAX: Duration = Duration::from_secs(1);
/// Hedge delay while too few answers have been seen to know a p95.
pub const HEDGE_DEFAULT: Duration = Duration::from_millis(250);

/// A peer that sent wrong bytes is not asked again for this long.
pub const LIAR_BAN: Duration = Duration::from_secs(60);

/// A peer or coordinator address that failed to connect is tried after the others for this long.
pub const UNREACHABLE_PENALTY: Duration = Duration::from_secs(5);

/// Reads in progress at one worker. A further one fails with `busy`.
pub const MAX_READS: usize = 65_536;

/// Records that a worker remembers for reads at a revision; the least recently used go first.
pub const MAX_HELD: usize = 100_000;

/// Publishes waiting at the coordinator. A further one is refused with
/// [`Busy`](super::code::Code::Busy).
pub const MAX_PENDING: usize = 1_024;

/// Remembered idempotency keys: 24 h at one keyed publish a second, rounded up. When it is full
/// a keyed publish is refused with [`Busy`](super::code::Code::Busy).
pub const MAX_KEYS: usize = 100_000;

/// How long an idempotency key is remembered.
pub const KEY_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Revisions that stay readable whatever their age.
pub const RETAINED_REVISIONS: u64 = 256;

/// Revisions younger than this stay readable whatever their number.
pub const RETAINED_AGE: Duration = Duration::from_secs(24 * 3600);

/// How long a worker may answer from its replica after it asked: a dead worker delays a publish by
/// this at most, and a cut of the network shorter than this goes unnoticed by readers.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(6);

/// Shortest lease that may be configured: below it, renewals would be most of the traffic.
pub const MIN_LEASE: Duration = Duration::from_millis(200);

/// Longest lease that may be configured.
pub const MAX_LEASE: Duration = Duration::from_secs(600);

/// How long whoever publishes waits for the answer: until the longest lease that may be configured
/// has run out, and a minute for two fsyncs behind whatever is queued at the coordinator.
pub const MAX_PUBLISH_WAIT: Duration = MAX_LEASE.saturating_add(Duration::from_secs(60));

/// Renewals per lease, so that one that is lost costs nothing.
pub const RENEWALS_PER_LEASE: u32 = 3;

/// How far two clocks may drift apart, per unit of time: ten times what a bad crystal does.
pub const DRIFT_PER_MILLE: u32 = 1;

/// Subtracted from a worker's lease once more, for what reading a clock takes.
pub const LEASE_MARGIN: Duration = Duration::from_millis(20);

/// Names in one [`Prepare`](super::wire::Prepare) or [`Grant`](super::wire::Grant). Beyond it
/// every name is marked: a worker then asks for each until the release.
pub const MAX_MARKS: usize = 1_024;

/// Bytes of steps in a [`Grant`](super::wire::Grant) or a release: what fits in with a heartbeat.
/// The rest is fetched with [`GetDelta`](super::wire::GetDelta).
pub const MAX_INLINE_DELTA: usize = 64 << 10;

/// Bytes of steps in one answer to [`GetDelta`](super::wire::GetDelta), before the one that goes
/// beyond it.
pub const MAX_DELTA: usize = 1 << 20;

/// Records in one [`CatalogPart`](super::wire::CatalogPart): about 100 KiB.
pub const RECORDS_PER_PART: usize = 1_024;

/// Sessions at one coordinator, one per worker process. A further one gets no lease.
pub const MAX_SESSIONS: usize = MAX_CONNECTIONS;

/// Sessions with one certificate: a few processes, and those that were killed a moment ago. A
/// further one gets no lease.
pub const MAX_SESSIONS_PER_NODE: usize = 32;

/// Renewals of one worker that may be under way; the answers to older ones are not believed.
pub const MAX_NONCES: usize = 8;

/// A session that let this many publishes run to its expiry within [`STRIKE_WINDOW`] gets no
/// lease for [`FIRST_BAR`].
pub const MAX_STRIKES: usize = 3;
/// See [`MAX_STRIKES`].
pub const STRIKE_WINDOW: Duration = Duration::from_secs(600);
/// How long it gets none the first time; doubled each time, up to [`MAX_BAR`]. Once nothing has
/// counted against it for [`STRIKE_WINDOW`] after a bar, the next one is the first again: a link
/// that was bad for an hour costs its worker no more than that hour.
pub const FIRST_BAR: Duration = Duration::from_secs(60);
/// See [`FIRST_BAR`].
pub const MAX_BAR: Duration = Duration::from_secs(600);

/// Workers that are named in the answer to a publish.
pub const MAX_NAMED_HOLDERS: usize = 16;

/// A strict read of a name that is about to change waits for the release at most this long before
/// it asks the coordinator.
pub const MAX_RELEASE_WAIT: Duration = Duration::from_millis(100);

/// Revisions before the newest that a worker's replica can be read at.
pub const REPLICA_REVISIONS: u64 = RETAINED_REVISIONS;

/// Live pins at one coordinator. A further one is refused with
/// [`Busy`](super::code::Code::Busy).
pub const MAX_PINS: usize = 10_000;

/// A pin lives this long unless the caller says otherwise,
pub const DEFAULT_PIN: Duration = Duration::from_secs(24 * 3600);
/// and at most this long.
pub const MAX_PIN: Duration = Duration::from_secs(30 * 24 * 3600);

/// Bodies that are fetched at once before anyone asked for them. Further hints are passed over.
pub const MAX_PREFETCH: usize = 64;

/// Names that a worker remembers to have used; those beyond it are not fetched ahead.
pub const MAX_USED: usize = 100_000;

/// Bytes of one gossip packet: what fits into a QUIC datagram at the smallest packet that QUIC
/// allows. A longer one is dropped. It is the same at all nodes and never changes.
pub const MAX_GOSSIP_PACKET: usize = 1_100;

/// Members, dead ones that are still remembered among them, that one node keeps: all that may be
/// connected. What is heard of a further one is dropped.
pub const MAX_MEMBERS: usize = MAX_CONNECTIONS;

/// Gossip packets of one member that are handled per second: ten times what a cluster of 1,000
/// needs. Those beyond it are dropped.
pub const MAX_GOSSIP_PER_SEC: u32 = 64;

/// Gossip packets of one member that may come at once.
pub const MAX_GOSSIP_BURST: u32 = 2 * MAX_GOSSIP_PER_SEC;

/// How long a dial for gossip may take: what waits for it is old after that.
pub const GOSSIP_DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Dials for gossip at once. Packets that would need a further one are dropped.
pub const MAX_GOSSIP_DIALS: usize = 64;

/// Gossip packets that wait for a connection to one member. The oldest go first: gossip is
/// repeated anyway.
pub const MAX_GOSSIP_QUEUE: usize = 8;

/// The highest generation that a member is believed to have on another's word: one more than
/// 4 billion starts. What is heard of a higher one is dropped.
pub const MAX_HEARD_GENERATION: u64 = 1 << 32;

/// How far above the generation that a member itself showed another's word may go.
pub const MAX_GENERATION_STEP: u64 = 1 << 16;

/// The highest generation that a member may show for itself, so that there is always a next one.
pub const MAX_GENERATION: u64 = 1 << 62;

/// A node that was declared dead takes a new generation this long after the last time at the
/// earliest; doubled each time, up to [`MAX_RENEW_BACKOFF`].
pub const RENEW_EVERY: Duration = Duration::from_secs(1);
/// See [`RENEW_EVERY`]. After twice as long without a renewal the first pause counts again.
pub const MAX_RENEW_BACKOFF: Duration = Duration::from_secs(60);

/// The first pause between two announcements of a node that no member has answered; doubled each
/// time, up to [`MAX_ANNOUNCE_BACKOFF`].
pub const FIRST_ANNOUNCE_BACKOFF: Duration = Duration::from_millis(500);
/// See [`FIRST_ANNOUNCE_BACKOFF`].
pub const MAX_ANNOUNCE_BACKOFF: Duration = Duration::from_secs(30);

/// Dials back that have to fail in a row before a node believes that nobody can dial it.
pub const UNREACHED_ENOUGH: u32 = 2;

/// Members that a node which nobody can dial stays connected to.
pub const LEAF_LINKS: usize = 3;

/// Nodes that nobody can dial and that one member passes heads to. A further one finds another.
pub const MAX_LEAVES: usize = 256;

/// Addresses that one round of announcements goes to.
pub const ANNOUNCE_FANOUT: usize = 3;

/// Workers named in one [`Met`](super::wire::Met): enough to find a cluster of which some are gone.
pub const MAX_NODES_PER_MEET: usize = 16;

/// Dials at once to see whether workers can be reached where they say. Further ones are not tried,
/// and the asker comes again.
pub const MAX_DIAL_BACKS: usize = 8;

/// One worker is dialled back at most this often.
pub const DIAL_BACK_EVERY: Duration = Duration::from_secs(5);

/// A short stream that carries a packet too long for a datagram has at most so many bytes,
pub const MAX_SHORT_STREAM: usize = 1_600;
/// there are at most so many of them at once on a connection, in each direction, and further
/// packets are dropped,
pub const MAX_SHORT_STREAMS: u32 = 64;
/// and one that is not through after this is dropped too: whoever waits has sent it again.
pub const SHORT_STREAM_TIMEOUT: Duration = Duration::from_millis(250);

/// Paths that a worker carries to the coordinator at once, for all others together: each is a
/// socket and a few packets. A further asker is told [`Busy`](super::code::Code::Busy) and asks
/// another worker.
pub const MAX_RELAY_FLOWS: usize = 64;

/// Paths that it carries at once for one worker: the one in use, and one that is being left.
pub const MAX_RELAY_FLOWS_PER_NODE: usize = 2;

/// A path over which the asker sends nothing for this long is closed; QUIC's keep-alive is more
/// frequent.
pub const RELAY_IDLE: Duration = Duration::from_secs(60);

/// Bytes per second that one path carries, both ways together: catalogs and bodies of a few
/// engines. Packets beyond it are dropped, and QUIC slows down.
pub const RELAY_BYTES_PER_SEC: u32 = 2 << 20;

/// Bytes that one path may carry at once.
pub const RELAY_BURST: u32 = 512 << 10;

/// Longest packet of a connection that goes over another worker: what every path carries, so that
/// nothing needs to be found out about it.
pub const RELAY_MTU: u16 = 1_200;

/// Packets that have come over another worker and wait to be read. Further ones are dropped, and
/// QUIC sends them again.
pub const MAX_RELAY_QUEUE: usize = 512;

/// Workers that are asked in turn to carry packets before a pause: most have a path of their own, or
/// none has.
pub const MAX_RELAYS_PER_ROUND: usize = 3;

/// After a round in which nobody could carry, none begins for this long.
pub const RELAY_PAUSE: Duration = Duration::from_secs(2);

/// How long a worker may take until the coordinator is reached over it; then the next is asked.
pub const RELAY_TIMEOUT: Duration = Duration::from_millis(1_500);

/// A worker without a lease renews nothing, and so does not find out that the coordinator can be
/// reached directly again: it gives a path over another worker up after this.
pub const RELAY_TERM: Duration = Duration::from_secs(30);

/// A renewal without an answer for three usual round trips, and for this long at least, makes the
/// path doubtful: a way over another worker is opened beside it.
pub const MIN_DOUBT: Duration = Duration::from_millis(500);

/// Addresses to join by. Further ones are refused with the configuration.
pub const MAX_SEEDS: usize = 256;

/// Members that are remembered on disk, to find the cluster again when the seeds are gone.
pub const MAX_REMEMBERED: usize = 256;

/// Members in one part of the list that two nodes compare over a stream: about 24 KiB.
pub const MEMBERS_PER_PART: usize = 512;

/// Members with a connection that are enough to spread news: every node chooses so many at random,
/// so that the graph of connections does not fall apart.
pub const ENOUGH_NEIGHBOURS: usize = 4;

/// A worker that is busy with reads when it starts looks for others after this at the latest,
pub const MAX_READS_FIRST: Duration = Duration::from_secs(30);
/// or after this where no coordinator is connected.
pub const MAX_DIAL_FIRST: Duration = Duration::from_secs(1);

/// A worker that has neither given others bytes nor taken any from them for so long is done with what
/// those who start together have to do. Where few do, the coordinator gives all the bytes.
pub const EXCHANGE_OVER: Duration = Duration::from_secs(10);

/// While a node does not know where it is reached, and while no seed answers, it asks again after
/// this, doubled up to [`MAX_ASK`].
pub const FIRST_ASK: Duration = Duration::from_millis(200);
/// See [`FIRST_ASK`].
pub const MAX_ASK: Duration = Duration::from_secs(10);

/// Members that a node tells of a head that is new to it, at once. Of a thousand nodes that each pick
/// so many at random one in three thousand is picked by nobody, and waits for a second or two until
/// other news take the head along; of a node that picked three it would be one in twenty.
pub const HEAD_FANOUT: usize = 8;

/// The first comparison after joining comes at once, the next after this; doubled each time that
/// [some](ENOUGH_QUIET_LISTS) have brought no new member, up to [`SYNC_EVERY`]. In a cluster that
/// starts at once everybody's list is short at first.
pub const FIRST_SYNC: Duration = Duration::from_secs(1);
/// Comparisons in a row without a new member after which there may be none to find: the other list
/// may have lacked the same one.
pub const ENOUGH_QUIET_LISTS: u32 = 2;
/// How often two nodes compare their lists of members.
pub const SYNC_EVERY: Duration = Duration::from_secs(60);

/// How often a node tells one member which heads it has, for those that gossip has missed.
pub const HEADS_EVERY: Duration = Duration::from_secs(30);

/// How often what is remembered of the members is written to disk at most.
pub const REMEMBER_EVERY: Duration = Duration::from_secs(5);

/// Catalogs whose heads are spread. Those of a further one are dropped.
pub const MAX_GOSSIPED_CATALOGS: usize = 4;

/// Heads of one catalog that a second, different one is compared with.
pub const MAX_KEPT_HEADS: usize = 16;

/// How long a dead member is remembered, so that old news of it does not bring it back and the
/// two halves of a cluster find each other after a cut.
pub const REMEMBER_DEAD: Duration = Duration::from_secs(24 * 3600);

/// Timers of the membership at once. Beyond it the next one is due at once.
pub const MAX_GOSSIP_TIMERS: usize = 4 * MAX_MEMBERS;

/// A member may take this long at least to answer a probe before others are asked to try it,
pub const MIN_PROBE: Duration = Duration::from_millis(500);
/// and this long at most, however long the round trips are.
pub const MAX_PROBE: Duration = Duration::from_secs(3);

/// A node that is woken this much later than it asked for lacks processor time: no scheduler is as
/// late as that otherwise, and every wait of the membership is several times as long.
pub const LATE_WAKE: Duration = Duration::from_millis(100);
/// The waits of such a node grow up to this many times what they are. One probe in half a minute,
/// where each needs a handshake, is little work even for a node in two hundred on one core.
pub const MAX_STRETCH: u32 = 8;
/// They shrink by one step in this time at most after an answer, and in as many times this as they
/// are stretched after wakes in time: quicker, and a cluster that starves begins its overload anew.
pub const SHRINK_EVERY: Duration = Duration::from_secs(2);
/// So many probes in a row without an answer count against a node that was woken late: of one, the
/// other may have died.
pub const ENOUGH_UNANSWERED: u32 = 2;
