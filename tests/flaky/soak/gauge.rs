//! What processes use, and whether it grows.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use super::NODES;

/// What is measured.
struct Measure {
    name: &'static str,
    /// May be added between the middle and the end, beyond a share of what was there.
    slack: u64,
    /// No process has more at any time.
    most: u64,
}

const MEASURES: [Measure; 4] = [
    Measure {
        // The history of a day, some KiB a revision, and what was in use at once when many
        // workers caught up, which the allocator keeps.
        name: "anonymous KiB",
        slack: 20 << 10,
        most: 128 << 10,
    },
    Measure {
        // Local HTTP has some at the moment, and sled's files come and go.
        name: "descriptors",
        slack: 8,
        most: 64,
    },
    Measure {
        // Seven are sled's and four are ours; the rest work off what may block.
        name: "threads",
        slack: 6,
        most: 32,
    },
    Measure {
        // Each of two workers may just have dialled the other.
        name: "connections",
        slack: 30,
        most: 4 * NODES as u64,
    },
];

/// A process may use so much more at the end than in the middle, in percent.
const GROWTH_MAX: u64 = 130;

/// By measure.
pub(super) type Values = [u64; MEASURES.len()];

/// What a process uses now.
///
/// # Panics
/// When it has ended.
pub(super) fn values(name: &str, pid: u32, connections: u64) -> Values {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        // One that has ended, and is not waited for, has no memory any more.
        let number = number.unwrap_or_else(|| panic!("{name} has ended by itself"));
        number.parse().expect("a number")
    };
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    [
        field("RssAnon:"),
        fds as u64,
        field("Threads:"),
        connections,
    ]
}

/// One process from its start.
#[derive(Default)]
struct Track {
    start: Option<Values>,
    middle: Option<Values>,
    end: Option<Values>,
    most: Values,
}

/// All processes that ever were, by node and process id.
#[derive(Default)]
pub(super) struct Gauge(BTreeMap<(String, u32), Track>);

impl Gauge {
    /// Notes what a process uses at any time.
    pub(super) fn look(&mut self, name: &str, pid: u32, values: Values) {
        let track = self.0.entry((name.to_owned(), pid)).or_default();
        track.start.get_or_insert(values);
        for (most, value) in track.most.iter_mut().zip(values) {
            *most = value.max(*most);
        }
    }

    /// The same in the middle, when all is well.
    pub(super) fn look_in_the_middle(&mut self, name: &str, pid: u32, values: Values) {
        self.look(name, pid, values);
        self.track(name, pid).middle = Some(values);
    }

    /// The same in the end.
    pub(super) fn look_at_the_end(&mut self, name: &str, pid: u32, values: Values) {
        self.look(name, pid, values);
        self.track(name, pid).end = Some(values);
    }

    fn track(&mut self, name: &str, pid: u32) -> &mut Track {
        self.0.entry((name.to_owned(), pid)).or_default()
    }

    /// Those that lived through the second half.
    fn survivors(&self) -> impl Iterator<Item = (&str, Values, Values, &Track)> {
        self.0.iter().filter_map(|((name, _), track)| {
            let (middle, end) = (track.middle?, track.end?);
            Some((name.as_str(), middle, end, track))
        })
    }

    /// What grew in the second half, and what was ever too much, in a line each.
    pub(super) fn grown(&self) -> Vec<String> {
        let mut grown = self.excess();
        for (name, middle, end, _) in self.survivors() {
            for (place, measure) in MEASURES.iter().enumerate() {
                let (middle, end) = (middle[place], end[place]);
                if end > middle * GROWTH_MAX / 100 + measure.slack {
                    let Measure {
                        name: what, slack, ..
                    } = measure;
                    grown.push(format!(
                        "{name}: {what} went from {middle} to {end}, slack {slack}"
                    ));
                }
            }
        }
        grown
    }

    fn excess(&self) -> Vec<String> {
        let mut excess = Vec::new();
        for ((name, _), track) in &self.0 {
            for (
                Measure {
                    name: what, most, ..
                },
                value,
            ) in MEASURES.iter().zip(track.most)
            {
                if value > *most {
                    excess.push(format!("{name}: {what} came to {value}, at most {most}"));
                }
            }
        }
        excess
    }

    /// How many lived through the second half.
    pub(super) fn survived(&self) -> usize {
        self.survivors().count()
    }

    /// A table of those: start, middle, end and most of each.
    pub(super) fn table(&self) -> String {
        let mut text = format!("  {:<12}", "node");
        for Measure { name, .. } in MEASURES {
            let _ = write!(text, "{:>28}", format!("{name} s/m/e/max"));
        }
        text.push('\n');
        for (name, middle, end, track) in self.survivors() {
            let start = track.start.unwrap_or_default();
            let _ = write!(text, "  {name:<12}");
            for place in 0..MEASURES.len() {
                let of = |values: Values| values[place];
                let cell = [start, middle, end, track.most].map(of);
                let cell = cell.map(|value| value.to_string()).join("/");
                let _ = write!(text, "{cell:>28}");
            }
            text.push('\n');
        }
        text
    }
}

#[test]
fn what_grows_beyond_a_share_and_its_slack_is_named_once_per_process_that_lived() {
    let mut gauge = Gauge::default();
    gauge.look("w1", 1, [10_000, 10, 10, 0]);
    gauge.look_in_the_middle("w1", 1, [20_000, 30, 10, 30]);
    gauge.look_at_the_end("w1", 1, [20_000 * 13 / 10 + (20 << 10), 48, 10, 30]);
    // It was killed, and another came.
    gauge.look_in_the_middle("w2", 2, [1, 1, 1, 1]);
    gauge.look_at_the_end("w2", 3, [90 << 10, 40, 20, 100]);
    assert_eq!(
        gauge.grown(),
        ["w1: descriptors went from 30 to 48, slack 8"]
    );
    assert_eq!(gauge.survived(), 1);
    let table = gauge.table();
    assert!(table.contains("10000/20000/"), "{table}");
    let line = table.lines().nth(1).expect("w1");
    assert!(line.ends_with("0/30/30/30"), "{table}");
}

#[test]
fn what_is_too_much_at_any_time_is_named_also_of_a_process_that_was_killed() {
    let mut gauge = Gauge::default();
    gauge.look("w1", 1, [10_000, 10, 32, 0]);
    assert_eq!(gauge.grown(), Vec::<String>::new());
    gauge.look("w1", 1, [10_000, 10, 33, 0]);
    gauge.look("w1", 1, [10_000, 10, 10, 0]);
    assert_eq!(gauge.grown(), ["w1: threads came to 33, at most 32"]);
}
