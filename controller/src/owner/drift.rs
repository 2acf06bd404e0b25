//! How often what others changed was repaired, and when that is a fight.
//!
//! In: the moments of repairs. Out: how long the next one waits. What is changed back again and
//! again is repaired less often, and told: two who write without end harm more than one who is
//! wrong.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// So many repairs within [`WINDOW`] are a fight, until there is none for as long.
pub(super) const FIGHT: usize = 10;

/// See [`FIGHT`].
pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// How long a repair in a fight waits after the one before.
pub(super) const PAUSE: Duration = Duration::from_secs(30);

/// The repairs of one thing in the last [`WINDOW`].
#[derive(Debug, Default)]
pub(super) struct Repairs {
    times: VecDeque<Instant>,
    fight: bool,
}

impl Repairs {
    /// It was repaired.
    pub(super) fn note(&mut self, now: Instant) {
        self.times.push_back(now);
        self.fight |= self.times.len() > FIGHT;
    }

    /// Forgets repairs of long ago, and the fight with the last of them.
    pub(super) fn forget(&mut self, now: Instant) {
        while self.times.front().is_some_and(|first| now - *first > WINDOW) {
            self.times.pop_front();
        }
        self.fight &= !self.times.is_empty();
    }

    /// Whether they are so many that they are a fight; how many, then.
    pub(super) fn fight(&self) -> Option<usize> {
        self.fight.then_some(self.times.len())
    }

    /// Whether the next repair has to wait.
    pub(super) fn pause(&self, now: Instant) -> bool {
        self.fight && self.times.back().is_some_and(|last| now - *last < PAUSE)
    }
}
