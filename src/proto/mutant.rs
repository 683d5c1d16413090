//! Named faults, one line each, that only test builds can switch on: a suite that lets one pass
//! has a hole. Without the feature `mutants` every question of `mutant!` is the constant
//! `false`, and nothing of this is in the binary.

/// Whether the named fault is switched on in this thread.
macro_rules! mutant {
    ($name:ident) => {{
        #[cfg(feature = "mutants")]
        {
            crate::proto::mutant::on(crate::proto::mutant::Mutant::$name)
        }
        #[cfg(not(feature = "mutants"))]
        {
            false
        }
    }};
}
pub(crate) use mutant;

#[cfg(feature = "mutants")]
pub(crate) use self::switch::turn;
#[cfg(feature = "mutants")]
pub use self::switch::{Guard, Mutant, on};

#[cfg(feature = "mutants")]
mod switch {
    use std::cell::Cell;

    thread_local! {
        static CHOSEN: Cell<Option<Mutant>> = const { Cell::new(None) };
        static TURN: Cell<u64> = const { Cell::new(0) };
    }

    macro_rules! mutants {
        ($($(#[$doc:meta])* $name:ident,)*) => {
            /// A fault, by the name that the protocol's list of mutants gives it.
            #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub enum Mutant {
                $($(#[$doc])* $name,)*
            }

            impl Mutant {
                /// Every one.
                pub const ALL: &[Self] = &[$(Self::$name,)*];

                /// Its name in the protocol's list.
                pub const fn name(self) -> &'static str {
                    match self { $(Self::$name => stringify!($name),)* }
                }
            }
        };
    }

    mutants! {
        /// The lease is counted from the receipt of the grant.
        M01,
        /// A publish is acknowledged without waiting for holders.
        M02,
        /// No wait for leases of before a restart.
        M03,
        /// A grant during a pending publish lacks its mark.
        M04,
        /// A publish waits for the renewable lease and not for the snapshot.
        M05,
        /// A late grant clears a mark.
        M06,
        /// The acknowledgement goes out before readers see the mark.
        M07,
        /// A grant of an earlier process is accepted.
        M08,
        /// Clock drift is not subtracted.
        M12,
        /// The clock stops in suspend.
        M13,
        /// The answer's nonce is not checked.
        M14,
        /// Visible before durable.
        M15,
        /// The replica or the floor goes back.
        M16,
        /// A marked name is served.
        M17,
        /// The longest lease is lowered at a restart.
        M18,
        /// Visible at commit.
        D1,
        /// A strict read is answered by a head that was heard of lately.
        D2,
        /// The clock is read before the snapshot.
        X01,
        /// One reader thread misses a mark.
        X02,
        /// The hash is checked over the first chunk only.
        X03,
        /// The length is not checked.
        X04,
        /// A hit on disk is not hashed again.
        X05,
        /// A child of a run is resolved at the newest revision.
        X06,
        /// The collector ignores pins.
        X07,
        /// The collector ignores pending publishes.
        X08,
        /// The pending entry is durable before its bodies.
        X09,
        /// A revision is used twice.
        X10,
        /// The high-water mark is kept before the checks.
        X11,
        /// The high-water mark is not kept.
        X12,
        /// The catalog id is not signed.
        X13,
        /// A peer's unproven "not found" is an answer.
        X15,
        /// A tombstone is dropped early.
        X16,
        /// Two heads for one revision are ignored.
        X17,
        /// The idempotency key is ignored.
        X20,
        /// A negative answer outlives a revision.
        X21,
        /// A strict read falls back in silence.
        X22,
        /// The lease is kept over a restart.
        X23,
        /// A hedge returns an unverified answer.
        X25,
        /// Bounded reads use the wall clock.
        X26,
        /// A run's snapshot is taken while marks are outstanding.
        X27,
        /// The lease is used below the floor.
        X28,
        /// A strict read joins an earlier request.
        X29,
        /// Leave is sent before readers lose the lease.
        X30,
        /// The expected revision is compared with the visible record only.
        X31,
        /// An old head from a peer counts as a rollback.
        X32,
        /// A worker carries packets of others while it is carried itself.
        X33,
        /// The catalog id is not compared.
        X34,
    }

    /// Found in a binary that can be made faulty, and in no other.
    const MARKER: &str = "this build of larder holds switchable faults";

    /// Whether `mutant` is switched on in this thread.
    pub fn on(mutant: Mutant) -> bool {
        std::hint::black_box(MARKER);
        CHOSEN.get() == Some(mutant)
    }

    /// Counts the guards of this thread.
    pub(crate) fn turn() -> u64 {
        TURN.get()
    }

    /// Keeps a fault switched on in this thread until it is dropped.
    #[derive(Debug)]
    pub struct Guard(());

    impl Guard {
        /// Switches `mutant` on, and any other one off.
        pub fn new(mutant: Mutant) -> Self {
            CHOSEN.set(Some(mutant));
            TURN.set(TURN.get() + 1);
            Self(())
        }
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            CHOSEN.set(None);
        }
    }
}
