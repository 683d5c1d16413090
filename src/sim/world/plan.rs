//! What a world is like.

use std::time::Duration;

use crate::proto::coordinator::Retention;
use crate::sim::random::Random;

/// A world: how many take part, what goes wrong how often, and for how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Which kind of world this is, for whoever wants to see it again.
    pub kind: &'static str,
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Workers.
    pub workers: usize,
    /// Readers at each worker.
    pub readers: usize,
    /// Names that are published and read.
    pub names: usize,
    /// Publishers.
    pub publishers: usize,
    /// Whether workers have peers.
    pub peers: bool,
    /// Whether workers know each other as members, and the coordinator names some of them instead
    /// of giving bytes.
    pub members: bool,
    /// Whether workers reach the coordinator over each other.
    pub relay: bool,
    /// Workers that are cut off from the coordinator, and from nobody else, in the middle half of
    /// the time. Reads of truth that have time must go on everywhere.
    pub apart: usize,
    /// Between two bursts of one reader.
    pub think: (Duration, Duration),
    /// Between two publishes of one publisher.
    pub publish: (Duration, Duration),
    /// How long things go wrong; a quiet time follows.
    pub length: Duration,
    /// What the coordinator grants.
    pub lease: Duration,
    /// One way over the network.
    pub delay: (Duration, Duration),
    /// What an fsync takes.
    pub fsync: (Duration, Duration),
    /// Packets that are lost and sent again, percent.
    pub loss: u32,
    /// Requests that arrive twice, percent.
    pub repeat: u32,
    /// Packets that take ten seconds, per thousand.
    pub slow: u32,
    /// Parts in a million by which clocks may be wrong.
    pub drift: u32,
    /// Answers of one renewal that come as those of another, percent.
    pub ghosts: u32,
    /// Peers that do not send what they should, percent.
    pub liars: u32,
    /// Publishes that delete, percent.
    pub deletes: u32,
    /// Publishes that leave out a body, percent.
    pub bodiless: u32,
    /// Names in one publish.
    pub width: usize,
    /// What stays readable.
    pub retention: Retention,
    /// What happens how often.
    pub faults: Faults,
    /// Whether runs, pins and rarer freshnesses take part.
    pub rich: bool,
}

/// The mean time between two faults of a kind; zero: never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The coordinator dies and comes back.
    pub coordinator: Duration,
    /// A worker's process dies and comes back.
    pub worker: Duration,
    /// A worker gives its lease back, reads on, and comes back.
    pub leave: Duration,
    /// A worker sleeps.
    pub suspend: Duration,
    /// A worker is cut off, in one direction or both.
    pub partition: Duration,
    /// A stream of pushes breaks, and each side finds out when it does.
    pub stream: Duration,
    /// A wall clock is set.
    pub wall: Duration,
    /// The coordinator's disk is full for a while.
    pub full: Duration,
    /// An fsync fails.
    pub fsync: Duration,
    /// The disk acknowledges syncs and writes nothing, for a while before the power is cut. No store
    /// outlives that: what is demanded then is that it is noticed. Never in random worlds.
    pub lost: Duration,
    /// A blob of a worker rots.
    pub rot: Duration,
    /// A backup is restored.
    pub restore: Duration,
    /// The journal is rewritten.
    pub compact: Duration,
    /// The lease is another one after a restart.
    pub lease: bool,
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

impl Plan {
    /// A calm world with two workers and one name, to be made worse.
    pub fn small(seed: u64) -> Self {
        Self {
            kind: "small",
            seed,
            workers: 2,
            readers: 2,
            names: 1,
            publishers: 1,
            peers: false,
            members: false,
            relay: false,
            apart: 0,
            think: (ms(1), ms(20)),
            publish: (ms(20), ms(400)),
            length: secs(20),
            lease: ms(600),
            delay: (ms(0), ms(5)),
            fsync: (ms(0), ms(3)),
            loss: 0,
            repeat: 0,
            slow: 0,
            drift: 0,
            ghosts: 0,
            liars: 0,
            deletes: 20,
            bodiless: 0,
            width: 1,
            retention: Retention::default(),
            faults: Faults::default(),
            rich: false,
        }
    }

    /// A world in which everything goes wrong now and then, as `seed` wills.
    pub fn random(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x6c61_7264_6572);
        let crowd = random.percent(4);
        let few = [5, 5, 6, 7, 8, 10, 12, 16];
        let workers = if crowd { 300 } else { *random.pick(&few) };
        let lease = *random.pick(&[ms(600), ms(600), ms(1_500), secs(6)]);
        let far = *random.pick(&[ms(1), ms(5), ms(5), ms(40), ms(150)]);
        let publishers = 1 + random.index(3);
        Self {
            kind: "random",
            workers,
            readers: if crowd { 1 } else { 2 },
            names: 1 + random.index(12),
            publishers,
            peers: random.percent(80),
            think: (ms(1), if crowd { ms(400) } else { ms(30) }),
            publish: (ms(5), if crowd { ms(4_000) } else { ms(600) }),
            length: if crowd { secs(20) } else { secs(40) },
            lease,
            delay: (Duration::from_micros(50), far),
            fsync: (Duration::from_micros(100), *random.pick(&[ms(2), ms(20)])),
            loss: *random.pick(&[0, 0, 1, 5, 20, 60]),
            repeat: *random.pick(&[0, 5, 20]),
            slow: *random.pick(&[0, 0, 2, 10]),
            drift: 990,
            ghosts: *random.pick(&[0, 0, 10]),
            liars: *random.pick(&[0, 20, 50]),
            bodiless: *random.pick(&[0, 3]),
            width: 1 + random.index(6),
            retention: *random.pick(&[
                Retention::default(),
                Retention {
                    revisions: 20,
                    age: secs(2),
                },
            ]),
            faults: Faults::random(&mut random),
            relay: random.percent(70),
            rich: true,
            members: random.percent(60),
            ..Self::small(seed)
        }
    }
}

impl Faults {
    fn random(random: &mut Random) -> Self {
        let mut sometimes = |percent, mean: Duration| match random.percent(percent) {
            true => mean,
            false => Duration::ZERO,
        };
        Self {
            coordinator: sometimes(60, secs(6)),
            worker: sometimes(70, secs(2)),
            leave: sometimes(30, secs(5)),
            suspend: sometimes(50, secs(3)),
            partition: sometimes(70, secs(2)),
            stream: sometimes(60, secs(2)),
            wall: sometimes(50, secs(4)),
            full: sometimes(20, secs(10)),
            fsync: sometimes(15, secs(15)),
            lost: Duration::ZERO,
            rot: sometimes(60, secs(1)),
            restore: sometimes(15, secs(20)),
            compact: sometimes(60, secs(4)),
            lease: sometimes(50, secs(1)) > Duration::ZERO,
        }
    }
}
