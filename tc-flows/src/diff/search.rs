//! An order of a few changes, found by trying.
//!
//! In comes a block of changes with what was made before it; out goes an order under which the fate
//! of every frame is all the way between those that the old and the new rules have for it, or none.
//! Frames are looked at as classes, so the answer is exact as long as the budget lasts; after that
//! there is none.

use std::collections::{BTreeMap, HashSet};

use super::class::{Class, Cube, Facts, Fate, Space, Undecided};
use super::program::Program;

/// Changes up to which an order is looked for.
const CHANGES_MAX: usize = 256;

/// Questions about frames that one block may cost.
const BUDGET: usize = 1 << 21;

/// A class with what old and new rules do to it.
#[derive(Clone, Debug)]
struct Judged {
    class: Class,
    old: Fate,
    new: Fate,
}

struct Search<'p, 'r, 'm> {
    space: Space<'p, 'r>,
    block: Vec<usize>,
    regions: Vec<Cube>,
    judged: Vec<Judged>,
    /// For each change of the block, those of the block that must be made before.
    needs: Vec<Vec<usize>>,
    made: &'m mut [bool],
    /// By place in the block.
    done: Vec<bool>,
    dead_ends: HashSet<Vec<bool>>,
    order: Vec<usize>,
}

/// How a state treats the frames that a change concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Treatment {
    /// All of them as the old or the new rules do.
    Faithful,
    /// All of them with no copy but those of the old or the new rules, and all that both make.
    Between,
    /// Not even that.
    Broken,
}

/// An order of this block where `made` says which other changes are made before, and is left so;
/// `budget` is what is left of the questions that may be asked.
pub(super) fn order(
    program: &Program<'_>,
    facts: &Facts,
    block: &[usize],
    made: &mut [bool],
    budget: &mut usize,
) -> Option<Vec<usize>> {
    if block.len() > CHANGES_MAX {
        return None;
    }
    let share = BUDGET.min(*budget);
    *budget -= share;
    let mut space = Space::new(program, facts, share);
    let regions: Vec<Cube> = block.iter().map(|at| space.region(*at)).collect();
    let place: BTreeMap<usize, usize> =
        block.iter().enumerate().map(|(place, at)| (*at, place)).collect();
    let mut needs = vec![Vec::new(); block.len()];
    for (deleted, added) in program.emptied(block) {
        let deleted: Vec<usize> = deleted.iter().map(|at| place[at]).collect();
        for at in added {
            needs[place[&at]].extend(&deleted);
        }
    }
    let mut search = Search {
        space,
        block: block.to_vec(),
        regions,
        judged: Vec::new(),
        needs,
        made,
        done: vec![false; block.len()],
        dead_ends: HashSet::new(),
        order: Vec::new(),
    };
    let found = search.judge().and_then(|()| search.go_on());
    *budget += search.space.budget;
    for at in block {
        search.made[*at] = false;
    }
    matches!(found, Ok(true)).then_some(search.order)
}

impl Search<'_, '_, '_> {
    /// Finds the classes that the block's changes concern.
    fn judge(&mut self) -> Result<(), Undecided> {
        let mut open = self.space.classes(&self.regions);
        while let Some(class) = open.pop() {
            let old = self.space.passage(&class, &|_| false);
            let both = old.and_then(|old| Ok((old, self.space.passage(&class, &|_| true)?)));
            match both {
                Ok((old, new)) => {
                    let met_change = old.met_change || new.met_change;
                    if let ([old], [new]) = (&old.fates[..], &new.fates[..])
                        && met_change
                    {
                        self.judged.push(Judged { class, old: old.clone(), new: new.clone() });
                    }
                }
                Err(Undecided::Split(cube)) => {
                    open.extend(class.more(&cube));
                    open.extend(class.less(&cube));
                }
                Err(Undecided::Budget) => return Err(Undecided::Budget),
            }
        }
        Ok(())
    }

    /// Tries what can come next; whether the end was reached.
    fn go_on(&mut self) -> Result<bool, Undecided> {
        if self.order.len() == self.block.len() {
            return Ok(true);
        }
        if self.dead_ends.contains(&self.done) {
            return Ok(false);
        }
        let mut between = Vec::new();
        for place in 0..self.block.len() {
            if self.done[place] || !self.needs[place].iter().all(|need| self.done[*need]) {
                continue;
            }
            match self.treatment_after(place)? {
                Treatment::Faithful => {
                    if self.step(place)? {
                        return Ok(true);
                    }
                }
                Treatment::Between => between.push(place),
                Treatment::Broken => {}
            }
        }
        for place in between {
            if self.step(place)? {
                return Ok(true);
            }
        }
        self.dead_ends.insert(self.done.clone());
        Ok(false)
    }

    fn step(&mut self, place: usize) -> Result<bool, Undecided> {
        self.set(place, true);
        self.order.push(self.block[place]);
        let found = self.go_on()?;
        if !found {
            self.order.pop();
            self.set(place, false);
        }
        Ok(found)
    }

    fn set(&mut self, place: usize, done: bool) {
        self.done[place] = done;
        self.made[self.block[place]] = done;
    }

    /// How the frames that this change concerns are treated once it is made.
    fn treatment_after(&mut self, place: usize) -> Result<Treatment, Undecided> {
        self.set(place, true);
        let treatment = self.treatment(place);
        self.set(place, false);
        treatment
    }

    fn treatment(&mut self, place: usize) -> Result<Treatment, Undecided> {
        let mut worst = Treatment::Faithful;
        let mut at = 0;
        while at < self.judged.len() {
            if !self.judged[at].class.meets(&self.regions[place]) {
                at += 1;
                continue;
            }
            let made = &self.made;
            let judged = &self.judged[at];
            match self.space.passage(&judged.class, &|entry| made[entry]) {
                Ok(passage) => {
                    let Judged { old, new, .. } = judged;
                    if !passage.fates.iter().all(|fate| fate.is_between(old, new)) {
                        return Ok(Treatment::Broken);
                    }
                    if !passage.fates.iter().all(|fate| fate == old || fate == new) {
                        worst = Treatment::Between;
                    }
                    at += 1;
                }
                Err(Undecided::Split(cube)) => {
                    let (more, less) = (judged.class.more(&cube), judged.class.less(&cube));
                    let Judged { old, new, .. } = self.judged.swap_remove(at);
                    let parts = more.into_iter().chain(less);
                    self.judged.extend(parts.map(|class| Judged {
                        class,
                        old: old.clone(),
                        new: new.clone(),
                    }));
                }
                Err(Undecided::Budget) => return Err(Undecided::Budget),
            }
        }
        Ok(worst)
    }
}
