//! Scenario files: which nodes there are, and what happens to their links when.
//!
//! ```yaml
//! about: The link of one worker fails in both directions.
//! nodes: [coordinator, w1, w2, w3]
//! seed: 1                  # optional
//! base: { delay: 2ms }     # the rule of every link; optional
//! lasts: 12s
//! steps:
//!   - { at: 3s, link: w1 <-> coordinator, do: cut }
//!   - { at: 8s, link: w1 <-> coordinator, do: heal }
//!   - { at: 9s, link: all -> w2+w3, set: { loss: 20%, rate: { limit: 20Mbit/s } } }
//!   - { at: 10s, link: w2 -> w3, flap: { every: 500ms, lasts: 1s } }
//!   - { at: 11s, link: all <-> all, do: reset }
//! ```
//!
//! A link is `FROM -> TO` or `A <-> B`, each side a node, some joined by `+`, or `all`. `cut` and
//! `heal` change nothing else of the rule; `set` changes what it names; `reset` goes back to the
//! base; `flap` cuts and heals in turn, begins with a cut, and ends healed.

use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::net::NODES_MAX;
use crate::rule::{Change, Rule};
use crate::unit::Span;

/// Changes of single links that one scenario may make: more are a mistake in its text.
pub const EVENTS_MAX: usize = 100_000;

/// Why a scenario cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// It is not of this form; the message has the line.
    #[error("{0}")]
    Form(#[from] serde_yaml::Error),
    /// It is of this form and makes no sense.
    #[error("{why} at line {line}")]
    Sense {
        /// Where, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
}

/// What a step does to each direction that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing gets through.
    Cut,
    /// The cut ends.
    Heal,
    /// The rule becomes the base again.
    Reset,
    /// Some of the rule changes.
    Set(Change),
}

/// One change of one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// After the scenario began.
    pub at: Duration,
    /// Number of the sending node, from 1.
    pub from: usize,
    /// Number of the receiving node.
    pub to: usize,
    /// What happens.
    pub action: Action,
}

/// A checked scenario.
#[derive(Debug, Clone)]
pub struct Scenario {
    about: String,
    nodes: Vec<String>,
    seed: u64,
    base: Rule,
    lasts: Duration,
    events: Vec<Event>,
}

impl Scenario {
    /// What it is for, in a sentence.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// Names of its nodes; the first has number 1.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// Where its randomness comes from.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// The rule of every link before the first event.
    pub fn base(&self) -> Rule {
        self.base.clone()
    }

    /// When it ends.
    pub const fn lasts(&self) -> Duration {
        self.lasts
    }

    /// What happens, in order of time.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The time of the last event: all is as well afterwards as it will be.
    pub fn settled(&self) -> Duration {
        self.events.last().map_or(Duration::ZERO, |event| event.at)
    }
}

impl FromStr for Scenario {
    type Err = ScenarioError;

    fn from_str(text: &str) -> Result<Self, ScenarioError> {
        let raw: RawScenario = serde_yaml::from_str(text)?;
        let sense = |word: &str, why: String| ScenarioError::Sense {
            line: line_of(text, word),
            why,
        };
        check_nodes(&raw.nodes).map_err(|why| sense("nodes", why))?;
        let mut events = Vec::new();
        for RawStep { at, link, action } in raw.steps {
            let pairs = link.pairs(&raw.nodes);
            let pairs = pairs.map_err(|name| sense(&name, format!("there is no node `{name}`")))?;
            for (after, action) in action.0 {
                let at = at.0 + after;
                if at > raw.lasts.0 {
                    let why = format!("`{}` changes at {at:?}, after the end", link.text);
                    return Err(sense(&link.text, why));
                }
                events.extend(pairs.iter().map(|&(from, to)| Event {
                    at,
                    from,
                    to,
                    action: action.clone(),
                }));
            }
            if events.len() > EVENTS_MAX {
                let why = format!("more than {EVENTS_MAX} changes");
                return Err(sense(&link.text, why));
            }
        }
        // Stable: of two changes at one time the later in the file wins.
        events.sort_by_key(|event| event.at);
        let mut base = Rule::default();
        raw.base.apply(&mut base);
        Ok(Self {
            about: raw.about,
            nodes: raw.nodes,
            seed: raw.seed,
            base,
            lasts: raw.lasts.0,
            events,
        })
    }
}

fn check_nodes(nodes: &[String]) -> Result<(), String> {
    if !(2..=NODES_MAX).contains(&nodes.len()) {
        return Err(format!("{} nodes, not 2 to {NODES_MAX}", nodes.len()));
    }
    for (index, name) in nodes.iter().enumerate() {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name == "all" || !name.chars().all(is_plain) {
            return Err(format!("`{name}` is not a name for a node"));
        }
        if nodes[..index].contains(name) {
            return Err(format!("two nodes are called `{name}`"));
        }
    }
    Ok(())
}

/// The last line that has `word`, from 1, since steps stand below the nodes.
fn line_of(text: &str, word: &str) -> usize {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let has_word = |line: &str| {
        let mut found = line.match_indices(word);
        found.any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + word.len()..].chars().next();
            !before.is_some_and(is_part) && !after.is_some_and(is_part)
        })
    };
    let lines: Vec<_> = text.lines().collect();
    lines.iter().rposition(|line| has_word(line)).unwrap_or(0) + 1
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScenario {
    about: String,
    nodes: Vec<String>,
    #[serde(default = "one")]
    seed: u64,
    #[serde(default)]
    base: Change,
    lasts: Span,
    #[serde(default)]
    steps: Vec<RawStep>,
}

const fn one() -> u64 {
    1
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "StepFields")]
struct RawStep {
    at: Span,
    link: Ends,
    action: Actions,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepFields {
    at: Span,
    link: Ends,
    r#do: Option<Verb>,
    set: Option<Change>,
    flap: Option<Flap>,
}

impl TryFrom<StepFields> for RawStep {
    type Error = &'static str;

    fn try_from(fields: StepFields) -> Result<Self, &'static str> {
        let StepFields {
            at,
            link,
            r#do,
            set,
            flap,
        } = fields;
        let action = match (r#do, set, flap) {
            (Some(verb), None, None) => Actions(vec![(Duration::ZERO, verb.into())]),
            (None, Some(change), None) => Actions(vec![(Duration::ZERO, Action::Set(change))]),
            (None, None, Some(flap)) => flap.actions(),
            _ => return Err("a step has one of `do`, `set` and `flap`"),
        };
        Ok(Self { at, link, action })
    }
}

/// What a step does, and how long after its time.
#[derive(Debug)]
struct Actions(Vec<(Duration, Action)>);

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verb {
    Cut,
    Heal,
    Reset,
}

impl From<Verb> for Action {
    fn from(verb: Verb) -> Self {
        match verb {
            Verb::Cut => Self::Cut,
            Verb::Heal => Self::Heal,
            Verb::Reset => Self::Reset,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "FlapFields")]
struct Flap {
    every: Duration,
    lasts: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlapFields {
    every: Span,
    lasts: Span,
}

impl TryFrom<FlapFields> for Flap {
    type Error = &'static str;

    fn try_from(fields: FlapFields) -> Result<Self, &'static str> {
        let (every, lasts) = (fields.every.0, fields.lasts.0);
        if every < Self::EVERY_MIN {
            return Err("a link does not flap more often than every 10ms");
        }
        Ok(Self { every, lasts })
    }
}

impl Flap {
    /// Faster is loss, and has a rule of its own.
    const EVERY_MIN: Duration = Duration::from_millis(10);

    fn actions(&self) -> Actions {
        let mut actions = Vec::new();
        let mut at = Duration::ZERO;
        for action in [Action::Cut, Action::Heal].into_iter().cycle() {
            if at >= self.lasts {
                break;
            }
            actions.push((at, action));
            at += self.every;
        }
        actions.push((self.lasts, Action::Heal));
        Actions(actions)
    }
}

/// The two sides of a link, as written.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Ends {
    text: String,
    from: Vec<String>,
    to: Vec<String>,
    is_both: bool,
}

impl TryFrom<String> for Ends {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let both = text.split_once("<->");
        let Some((from, to)) = both.or_else(|| text.split_once("->")) else {
            return Err(format!("`{text}` is neither `FROM -> TO` nor `A <-> B`"));
        };
        let side = |side: &str| {
            let names = side.split('+').map(|name| name.trim().to_owned());
            names.collect::<Vec<_>>()
        };
        Ok(Self {
            from: side(from),
            to: side(to),
            is_both: both.is_some(),
            text,
        })
    }
}

impl Ends {
    /// Every direction that is meant, each once, or the name that no node has.
    fn pairs(&self, nodes: &[String]) -> Result<Vec<(usize, usize)>, String> {
        let numbers = |names: &[String]| {
            let mut numbers = Vec::new();
            for name in names {
                match nodes.iter().position(|node| node == name) {
                    _ if name == "all" => numbers.extend(1..=nodes.len()),
                    Some(index) => numbers.push(index + 1),
                    None => return Err(name.clone()),
                }
            }
            Ok(numbers)
        };
        let (from, to) = (numbers(&self.from)?, numbers(&self.to)?);
        let mut pairs = Vec::new();
        for &from in &from {
            for &to in to.iter().filter(|to| **to != from) {
                pairs.push((from, to));
                if self.is_both {
                    pairs.push((to, from));
                }
            }
        }
        pairs.sort_unstable();
        pairs.dedup();
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "about: a test\nnodes: [a, b, c]\nlasts: 10s\nsteps:\n";

    fn parse(steps: &str) -> Result<Scenario, ScenarioError> {
        format!("{HEAD}{steps}").parse()
    }

    fn pairs(link: &str) -> Vec<(usize, usize)> {
        let scenario = parse(&format!("- {{ at: 1s, link: {link}, do: cut }}\n"));
        let events = scenario.expect("a scenario").events;
        events.iter().map(|event| (event.from, event.to)).collect()
    }

    #[test]
    fn a_link_names_every_direction_that_it_means_once() {
        assert_eq!(pairs("a -> b"), [(1, 2)]);
        assert_eq!(pairs("a <-> b"), [(1, 2), (2, 1)]);
        assert_eq!(pairs("all -> c"), [(1, 3), (2, 3)]);
        assert_eq!(pairs("a+b <-> c"), [(1, 3), (2, 3), (3, 1), (3, 2)]);
        assert_eq!(pairs("all <-> all").len(), 6);
    }

    #[test]
    fn a_flapping_link_is_cut_and_healed_in_turn_and_ends_healed() {
        let scenario = parse("- { at: 2s, link: a -> b, flap: { every: 1s, lasts: 3s } }\n");
        let events = scenario.expect("a scenario").events;
        let seen: Vec<_> = events
            .into_iter()
            .map(|event| (event.at.as_secs(), event.action))
            .collect();
        let wanted = [
            (2, Action::Cut),
            (3, Action::Heal),
            (4, Action::Cut),
            (5, Action::Heal),
        ];
        assert_eq!(seen, wanted);
    }

    #[test]
    fn events_come_in_order_of_time_whatever_their_order_in_the_file() {
        let scenario = parse(
            "- { at: 5s, link: a -> b, do: heal }\n\
             - { at: 1s, link: a -> b, set: { loss: 20%, rate: { limit: 20Mbit/s } } }\n",
        );
        let scenario = scenario.expect("a scenario");
        let times: Vec<_> = scenario
            .events
            .iter()
            .map(|event| event.at.as_secs())
            .collect();
        assert_eq!(times, [1, 5]);
        assert_eq!(scenario.settled(), Duration::from_secs(5));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_line() {
        let cases = [
            (
                "- { at: 1s, link: a -> b, do: cut }\n- { at: 1s, link: a -> d, do: cut }",
                "no node `d`",
                6,
            ),
            ("- { at: 11s, link: a -> b, do: cut }", "after the end", 5),
            ("- { at: 1s, link: a, do: cut }", "neither", 5),
            (
                "- { at: 1x, link: a -> b, do: cut }",
                "`1x` is not a time",
                5,
            ),
            ("- { at: 1s, link: a -> b, do: burn }", "burn", 5),
            (
                "- { at: 1s, link: a -> b }",
                "one of `do`, `set` and `flap`",
                5,
            ),
            (
                "- { at: 1s, link: a -> b, set: { loss: 120% } }",
                "share",
                5,
            ),
            ("- { at: 1s, link: a -> b, set: { los: 20% } }", "los", 5),
            ("- { at: 1s, link: a -> b, set: { mtu: 70000 } }", "mtu", 5),
            (
                "- { at: 1s, link: a -> b, flap: { every: 1us, lasts: 1s } }",
                "10ms",
                5,
            ),
            ("- { at: 1s, link: a -> b, wrong: 1 }", "wrong", 5),
        ];
        for (steps, why, line) in cases {
            let said = parse(steps).expect_err(steps).to_string();
            assert!(said.contains(why), "{steps}: {said}");
            assert!(said.contains(&format!("at line {line}")), "{steps}: {said}");
        }
        let twice = "about: x\nlasts: 1s\nnodes: [a, a]\n".parse::<Scenario>();
        let said = twice.expect_err("two of one name").to_string();
        assert_eq!(said, "two nodes are called `a` at line 3");
    }
}
