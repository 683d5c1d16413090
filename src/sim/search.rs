//! An exhaustive search over the states of a [`Model`], breadth first, so that the first
//! violation found has a shortest trace.
//!
//! It is our own and not a library's, because faults are switched on per thread, because the
//! promises are checked on steps and not on states, and because states must be told apart by
//! their bytes relative to now. States are remembered by 128 bits of BLAKE3 and one step; a trace
//! is found by taking the steps again from the start.

use std::collections::{HashSet, VecDeque};
use std::fmt;

/// What is searched.
pub trait Model {
    /// A state; cheap to clone.
    type State: Clone;
    /// What can happen next.
    type Step: Copy;

    /// Where it begins.
    fn initial(&self) -> Self::State;

    /// All that can happen in `state`.
    fn steps(&self, state: &Self::State) -> Vec<Self::Step>;

    /// What `state` becomes.
    ///
    /// # Errors
    /// The promise that the step breaks, in words.
    fn take(&self, state: &Self::State, step: Self::Step) -> Result<Self::State, String>;

    /// Looks at a state that is new, with its digest.
    ///
    /// # Errors
    /// The promise that it breaks, in words.
    fn look(&self, state: &Self::State, digest: u128) -> Result<(), String>;

    /// Tells states apart that differ in what can happen from now on.
    fn digest(&self, state: &Self::State) -> u128;

    /// The step in words.
    fn describe(&self, state: &Self::State, step: Self::Step) -> String;
}

/// How far a search went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// States that differ.
    pub states: usize,
    /// Steps taken.
    pub steps: usize,
    /// Steps from the start to the farthest state.
    pub depth: usize,
    /// Whether every state was seen that can be reached.
    pub complete: bool,
    /// A shortest way to a broken promise.
    pub trace: Option<Trace>,
}

/// What happened, up to the broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Each step in words.
    pub steps: Vec<String>,
    /// The promise, and how the last step breaks it.
    pub broken: String,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in (1..).zip(&self.steps) {
            writeln!(f, "{number:3}. {step}")?;
        }
        write!(f, "     {}", self.broken)
    }
}

/// Visits every state that can be reached, or the first `limit` ones.
pub fn search<M: Model>(model: &M, limit: usize) -> Found {
    let initial = model.initial();
    let mut known = HashSet::from([model.digest(&initial)]);
    // How each state was first reached.
    let mut ways: Vec<Option<(u32, M::Step)>> = vec![None];
    let mut frontier = VecDeque::from([(initial, 0_u32, 0_usize)]);
    let mut found = Found {
        states: 1,
        steps: 0,
        depth: 0,
        complete: true,
        trace: None,
    };
    while let Some((state, index, depth)) = frontier.pop_front() {
        found.depth = depth;
        for step in model.steps(&state) {
            found.steps += 1;
            let taken = model.take(&state, step).and_then(|next| {
                let digest = model.digest(&next);
                let new = known.insert(digest);
                if new {
                    model.look(&next, digest)?;
                }
                Ok(new.then_some(next))
            });
            let next = match taken {
                Ok(Some(next)) => next,
                Ok(None) => continue,
                Err(broken) => {
                    let mut steps = way_to(&ways, index);
                    steps.push(step);
                    found.trace = Some(tell(model, &steps, broken));
                    return found;
                }
            };
            let Ok(number) = u32::try_from(ways.len()) else {
                found.complete = false;
                return found;
            };
            ways.push(Some((index, step)));
            found.states += 1;
            if found.states >= limit {
                found.complete = false;
                return found;
            }
            frontier.push_back((next, number, depth + 1));
        }
    }
    found
}

fn way_to<S: Copy>(ways: &[Option<(u32, S)>], to: u32) -> Vec<S> {
    let mut steps = Vec::new();
    let mut at = to;
    while let Some(Some((before, step))) = ways.get(at as usize) {
        steps.push(*step);
        at = *before;
    }
    steps.reverse();
    steps
}

fn tell<M: Model>(model: &M, steps: &[M::Step], broken: String) -> Trace {
    let mut state = model.initial();
    let mut told = Vec::with_capacity(steps.len());
    for &step in steps {
        told.push(model.describe(&state, step));
        if let Ok(next) = model.take(&state, step) {
            state = next;
        }
    }
    Trace {
        steps: told,
        broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two counters up to 3 that must not both be at 3.
    struct Counters;

    impl Model for Counters {
        type State = (u8, u8);
        type Step = bool;

        fn initial(&self) -> (u8, u8) {
            (0, 0)
        }

        fn steps(&self, _: &(u8, u8)) -> Vec<bool> {
            vec![false, true]
        }

        fn take(&self, &(a, b): &(u8, u8), first: bool) -> Result<(u8, u8), String> {
            match if first { (a + 1, b) } else { (a, b + 1) } {
                (3, 3) => Err("both are at 3".into()),
                next => Ok((next.0.min(3), next.1.min(3))),
            }
        }

        fn look(&self, _: &(u8, u8), _: u128) -> Result<(), String> {
            Ok(())
        }

        fn digest(&self, &(a, b): &(u8, u8)) -> u128 {
            u128::from(a) << 8 | u128::from(b)
        }

        fn describe(&self, _: &(u8, u8), first: bool) -> String {
            format!("first: {first}")
        }
    }

    #[test]
    fn a_shortest_way_to_a_violation_is_found_and_a_limit_is_obeyed() {
        let found = search(&Counters, 1_000);
        let trace = found.trace.expect("both reach 3");
        assert_eq!(trace.steps.len(), 6);
        assert_eq!(trace.broken, "both are at 3");
        let cut = search(&Counters, 4);
        assert!(!cut.complete && cut.states == 4 && cut.trace.is_none());
    }
}
