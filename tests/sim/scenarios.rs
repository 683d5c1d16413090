//! Small worlds, each of which asks for trouble of one kind.

use std::time::Duration;

use larder::proto::coordinator::Retention;
use larder::sim::world::{Faults, Plan};

/// A kind of world, by its name.
pub(crate) type Scenario = (&'static str, fn(u64) -> Plan);

/// All of them, the likeliest to notice something first.
pub(crate) const ALL: &[Scenario] = &[
    ("slow", slow),
    ("calm", calm),
    ("cut off", cut_off),
    ("one way", one_way),
    ("restarts", restarts),
    ("ghosts", ghosts),
    ("suspend", suspend),
    ("leave", leave),
    ("leases", leases),
    ("far behind", far_behind),
    ("liars", liars),
    ("neighbours", neighbours),
    ("tree", tree),
    ("carried", carried),
    ("keys", keys),
    ("retention", retention),
    ("rich", rich),
    ("restore", restore),
    ("drift", drift),
    ("lost syncs", lost_syncs),
];

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn calm(seed: u64) -> Plan {
    Plan {
        kind: "calm",
        ..Plan::small(seed)
    }
}

fn slow(seed: u64) -> Plan {
    Plan {
        kind: "slow",
        delay: (ms(0), ms(250)),
        loss: 5,
        repeat: 10,
        slow: 3,
        ..Plan::small(seed)
    }
}

fn cut_off(seed: u64) -> Plan {
    Plan {
        kind: "cut off",
        faults: Faults {
            partition: ms(300),
            stream: ms(1_000),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

fn one_way(seed: u64) -> Plan {
    Plan {
        kind: "one way",
        lease: ms(1_500),
        length: Duration::from_secs(40),
        faults: Faults {
            partition: ms(800),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

/// Two are cut off from the coordinator alone, and reach it over the others; some of those are bad
/// carriers.
fn carried(seed: u64) -> Plan {
    Plan {
        kind: "carried",
        workers: 5,
        peers: true,
        relay: true,
        apart: 2,
        liars: 30,
        lease: ms(1_500),
        loss: 2,
        repeat: 10,
        length: Duration::from_secs(40),
        ..Plan::small(seed)
    }
}

fn restarts(seed: u64) -> Plan {
    Plan {
        kind: "restarts",
        fsync: (ms(0), ms(60)),
        faults: Faults {
            coordinator: ms(900),
            worker: ms(900),
            partition: ms(1_500),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

fn ghosts(seed: u64) -> Plan {
    Plan {
        kind: "ghosts",
        ghosts: 60,
        faults: Faults {
            worker: ms(500),
            partition: ms(800),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

fn suspend(seed: u64) -> Plan {
    Plan {
        kind: "suspend",
        faults: Faults {
            suspend: ms(300),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

fn leave(seed: u64) -> Plan {
    Plan {
        kind: "leave",
        faults: Faults {
            leave: ms(400),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

fn leases(seed: u64) -> Plan {
    Plan {
        kind: "leases",
        lease: ms(6_000),
        faults: Faults {
            coordinator: ms(800),
            partition: ms(400),
            lease: true,
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

/// So much changes while a worker is away that it learns of it bit by bit.
fn far_behind(seed: u64) -> Plan {
    Plan {
        kind: "far behind",
        names: 150,
        width: 150,
        delay: (ms(0), ms(120)),
        loss: 10,
        publish: (ms(10), ms(60)),
        length: Duration::from_secs(8),
        faults: Faults {
            partition: ms(700),
            stream: ms(700),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

/// The coordinator's clock is quick, most workers' are slow, and a cut-off worker holds a long
/// lease to its end.
pub(crate) fn drift(seed: u64) -> Plan {
    Plan {
        kind: "drift",
        readers: 1,
        drift: 1_000,
        lease: ms(6_000),
        delay: (Duration::from_micros(20), Duration::from_micros(60)),
        think: (ms(0), ms(6)),
        publish: (ms(5), ms(50)),
        length: Duration::from_secs(40),
        faults: Faults {
            partition: ms(900),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

fn liars(seed: u64) -> Plan {
    Plan {
        kind: "liars",
        workers: 5,
        names: 3,
        peers: true,
        liars: 60,
        delay: (ms(0), ms(60)),
        rich: true,
        faults: Faults {
            rot: ms(50),
            partition: ms(500),
            worker: ms(1_500),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

/// Bytes go from worker to worker, and some of them give wrong ones, none, or have no time.
fn tree(seed: u64) -> Plan {
    Plan {
        kind: "tree",
        workers: 12,
        readers: 1,
        names: 3,
        members: true,
        liars: 30,
        delay: (ms(0), ms(40)),
        loss: 2,
        rich: true,
        faults: Faults {
            rot: ms(100),
            partition: ms(800),
            worker: ms(1_000),
            coordinator: ms(5_000),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

/// Workers that are cut off learn from each other, and from some that show what is old or wrong.
fn neighbours(seed: u64) -> Plan {
    Plan {
        kind: "neighbours",
        workers: 5,
        names: 2,
        peers: true,
        liars: 40,
        delay: (ms(0), ms(30)),
        rich: true,
        faults: Faults {
            partition: ms(150),
            stream: ms(500),
            worker: ms(1_500),
            coordinator: ms(4_000),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

fn keys(seed: u64) -> Plan {
    Plan {
        kind: "keys",
        publishers: 3,
        names: 2,
        width: 2,
        bodiless: 10,
        loss: 10,
        slow: 20,
        fsync: (ms(0), ms(20)),
        publish: (ms(1), ms(20)),
        faults: Faults {
            coordinator: ms(1_500),
            full: ms(6_000),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

/// A disk that acknowledges syncs and loses them, and a power cut. Everybody hears all that is
/// published, so that everybody can tell.
fn lost_syncs(seed: u64) -> Plan {
    Plan {
        kind: "lost syncs",
        workers: 4,
        peers: true,
        names: 3,
        publish: (ms(20), ms(200)),
        faults: Faults {
            lost: Duration::from_secs(4),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

fn retention(seed: u64) -> Plan {
    Plan {
        kind: "retention",
        names: 4,
        publishers: 2,
        publish: (ms(1), ms(20)),
        length: Duration::from_secs(8),
        deletes: 40,
        rich: true,
        retention: Retention {
            revisions: 5,
            age: ms(500),
        },
        faults: Faults {
            coordinator: ms(2_000),
            compact: ms(250),
            partition: ms(3_000),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

fn rich(seed: u64) -> Plan {
    Plan {
        kind: "rich",
        workers: 4,
        names: 2,
        width: 2,
        rich: true,
        publish: (ms(5), ms(150)),
        loss: 2,
        faults: Faults {
            partition: ms(400),
            wall: ms(200),
            coordinator: ms(3_000),
            worker: ms(2_000),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}

fn restore(seed: u64) -> Plan {
    Plan {
        kind: "restore",
        names: 2,
        delay: (ms(0), ms(100)),
        publish: (ms(1), ms(100)),
        publishers: 2,
        faults: Faults {
            restore: ms(900),
            worker: ms(2_000),
            partition: ms(1_500),
            ..Faults::default()
        },
        ..Plan::small(seed)
    }
}
