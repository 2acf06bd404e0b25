//! Which rules of a chain can match a frame that a given match takes.
//!
//! In come entries of one chain; out go, for a match, the entries that overlap with it, prio by
//! prio. Rules of one prio and mask shape are looked up by their bits, so that a question costs as
//! many look-ups as there are such groups, not rules.

use std::collections::{BTreeMap, HashMap};

use crate::ident::{ETH_P_ALL, Prio};
use crate::key::{Fields, KeyId, Match};
use crate::rule::RuleId;

/// Entries of one chain by prio, protocol and shape.
#[derive(Debug, Default)]
pub(super) struct Overlaps {
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    prio: Prio,
    protocol: u16,
    shape: Fields,
    members: Vec<(usize, Fields)>,
    /// For bits that a question's shape has in common with this one: entries by what they show
    /// there.
    through: HashMap<Fields, HashMap<Fields, Vec<usize>>>,
}

/// A match as questions need it.
#[derive(Debug)]
pub(super) struct Question<'m> {
    matching: &'m Match,
    shape: Fields,
}

impl<'m> Question<'m> {
    pub(super) fn new(matching: &'m Match) -> Question<'m> {
        Question { matching, shape: matching.fields().shape() }
    }
}

impl Overlaps {
    pub(super) fn new<'r>(entries: impl IntoIterator<Item = (usize, &'r RuleId)>) -> Overlaps {
        let mut groups: BTreeMap<(Prio, u16, Fields), Vec<(usize, Fields)>> = BTreeMap::new();
        for (at, id) in entries {
            let fields = id.matching().fields();
            let key = (id.prio(), id.matching().protocol(), fields.shape());
            groups.entry(key).or_default().push((at, fields.clone()));
        }
        let group = |((prio, protocol, shape), members)| Group {
            prio,
            protocol,
            shape,
            members,
            through: HashMap::new(),
        };
        Overlaps { groups: groups.into_iter().map(group).collect() }
    }

    /// How many look-ups a question costs.
    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// The prio of this group; prios rise with groups.
    pub(super) fn prio(&self, group: usize) -> Prio {
        self.groups[group].prio
    }

    /// The entries of this group that overlap, and whether each of them matches all that the
    /// question's match does.
    pub(super) fn within(&mut self, group: usize, question: &Question<'_>) -> (&[usize], bool) {
        let group = &mut self.groups[group];
        let protocol = question.matching.protocol();
        let all = group.protocol == ETH_P_ALL || group.protocol == protocol;
        if !all && protocol != ETH_P_ALL {
            return (&[], false);
        }
        let common = group.shape.common(&question.shape);
        // Which options a frame must have is more than bits.
        let bits = group.shape.get(KeyId::EncOpts).is_none();
        let covers = all && bits && common == group.shape;
        let value = question.matching.fields().projected(&common);
        let members = &group.members;
        let seen = group.through.entry(common).or_insert_with_key(|common| {
            let mut seen: HashMap<Fields, Vec<usize>> = HashMap::new();
            for (at, fields) in members {
                seen.entry(fields.projected(common)).or_default().push(*at);
            }
            seen
        });
        (seen.get(&value).map(Vec::as_slice).unwrap_or_default(), covers)
    }
}
