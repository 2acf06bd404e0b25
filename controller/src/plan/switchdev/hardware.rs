//! What of a hook's rules hardware may hold, so that hardware-then-software does what software
//! alone would do.
//!
//! In: the rules of one hook as the planner wants them, and what the driver said to each. Out: the
//! same rules, some of them for software only, and traps for hardware only. Pure.
//!
//! Hardware runs first, and only what it does not finish reaches software. So a rule that hardware
//! does not hold is lost behind any rule that it holds, that stands later in the same chain and
//! takes the same frames to another end. Each such rule becomes one for software only, or a trap
//! with the key of the missing rule stands in hardware before it. And where hardware hands a frame
//! over, software may begin anew at chain 0 (mlx5 for `pass` and `trap`; ice always): what hardware
//! did until then would be done twice. So no rule that copies or changes a frame leads in hardware
//! to a chain where hardware may hand it over.

use std::{borrow::Cow, collections::BTreeMap};

use api::resources::EswitchMode;
use tc_flows::{Action, ChainId, Eswitch, Offload, Prio, Profile, Rule};

use crate::{
    capability::{Ability, profile_of},
    world::AdapterView,
};

/// The prio before a rule's, where its trap stands: the planner gives rules even prios.
fn trap_prio(prio: Prio) -> Option<Prio> {
    Prio::new(prio.get() - 1).filter(|_| prio.get().is_multiple_of(2))
}

/// What is known of the hardware behind an adapter's representors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardware {
    profile: Profile,
    /// Whether it hands frames to software where a rule says so.
    traps: bool,
    /// Whether it has chains, and asks rules in order of prio. Without, it holds fused rules only.
    chains: bool,
}

/// What a driver said to a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Hardware holds it.
    Taken,
    /// It does not.
    Refused,
    /// It was not asked.
    None,
}

impl Hardware {
    /// The hardware of this profile.
    pub fn new(profile: Profile) -> Hardware {
        // One flat table, and one priority for all rules (ice_eswitch_add_tc_fltr, ice_tc_lib.c).
        let chains = !matches!(profile, Profile::Ice(_));
        Hardware { profile, traps: chains, chains }
    }

    /// The hardware of an adapter in switchdev mode; none of any other.
    pub(super) fn of(adapter: &AdapterView) -> Option<Hardware> {
        if adapter.mode != Some(EswitchMode::Switchdev) {
            return None;
        }
        let capabilities = adapter.capabilities.as_deref();
        let of_vfs = adapter.vfs.values().filter_map(|vf| vf.representor.as_ref());
        let representors = of_vfs.map(|netdev| netdev.ifindex);
        let mut hardware = Hardware::new(match &adapter.uplink {
            Some(uplink) => {
                let eswitch = Eswitch::new(uplink.ifindex, representors);
                profile_of(adapter.driver.as_deref(), eswitch).1
            }
            None => Profile::AcceptAll,
        });
        let denied = |ability: Ability| {
            let capability = capabilities.and_then(|known| known.abilities.get(&ability));
            capability.is_some_and(|capability| !capability.available)
        };
        hardware.chains &= !denied(Ability::Chains);
        hardware.traps &= hardware.chains && !denied(Ability::Trap);
        Some(hardware)
    }

    /// Whether it has no chains but the first.
    pub(super) const fn is_chainless(&self) -> bool {
        !self.chains
    }

    /// Whose hardware it is.
    pub const fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Whether this answer is other than the profile's: what else shall be in hardware may depend
    /// on it.
    pub(crate) fn is_news(&self, rule: &Rule, taken: bool) -> bool {
        rule.offload() == Offload::SkipSw || self.profile.accepts(rule).is_ok() != taken
    }

    /// What shall stand at a hook, from its rules in order of identity and the answers so far. A
    /// driver that was not asked yet is taken to answer as its profile says, and is asked. Once
    /// everything stands as it shall and the answers change no more, hardware-then-software does
    /// what software alone does.
    pub fn attainable<'r>(
        &self,
        rules: impl IntoIterator<Item = &'r Rule>,
        answer: impl Fn(&Rule) -> Answer,
    ) -> Vec<Cow<'r, Rule>> {
        let mut chains: BTreeMap<ChainId, Vec<&'r Rule>> = BTreeMap::new();
        for rule in rules {
            chains.entry(rule.chain()).or_default().push(rule);
        }
        let mut out = Vec::new();
        // Chains in which hardware finishes every frame itself. Chain numbers rise along paths.
        let mut finishing: BTreeMap<ChainId, bool> = BTreeMap::new();
        for (chain, rules) in chains.into_iter().rev() {
            let finishes = self.chain(rules, &finishing, &answer, &mut out);
            finishing.insert(chain, finishes);
        }
        out.sort_unstable_by(|one, other| one.id().cmp(other.id()));
        out
    }

    /// One chain; says whether hardware finishes every frame there.
    fn chain<'r>(
        &self,
        rules: Vec<&'r Rule>,
        finishing: &BTreeMap<ChainId, bool>,
        answer: &impl Fn(&Rule) -> Answer,
        out: &mut Vec<Cow<'r, Rule>>,
    ) -> bool {
        let mut missing: Vec<Missing<'r>> = Vec::new();
        let mut finishes = true;
        for rule in rules {
            let for_hardware = rule.offload() == Offload::SkipSw;
            let may_ask = self.may_ask(rule, finishing);
            let answer_to_it = answer(rule);
            let open = may_ask && answer_to_it != Answer::Refused;
            let met = |lack: &&mut Missing<'_>| {
                !lack.covered && lack.rule.prio() < rule.prio() && lack.meets(rule)
            };
            let mut shadowed = false;
            for lack in missing.iter_mut().filter(met) {
                if open && lack.rule.actions() != rule.actions() {
                    lack.harms = true;
                    shadowed |= !lack.trapped;
                }
            }
            let accepted = || answer_to_it == Answer::Taken || self.profile.accepts(rule).is_ok();
            let holds = open && !shadowed && accepted();
            if holds {
                // What comes behind it is not the matter of what it covers.
                for lack in missing.iter_mut().filter(met) {
                    lack.covered = rule.id().matching().covers(lack.rule.id().matching());
                }
                finishes &= !rule.actions().contains(&Action::Pass);
                out.push(Cow::Borrowed(rule));
                continue;
            }
            if for_hardware {
                continue;
            }
            finishes = false;
            // It is asked, unless that would do harm.
            out.push(match may_ask && !shadowed {
                true => Cow::Borrowed(rule),
                false => Cow::Owned(rule.clone().with_offload(Offload::SkipHw)),
            });
            let trap = self.trap(rule);
            let trapped = trap.as_ref().is_some_and(|trap| answer(trap) == Answer::Taken);
            missing.push(Missing { rule, trap, trapped, covered: false, harms: false });
        }
        for lack in missing.into_iter().filter(|lack| lack.harms) {
            out.extend(lack.trap.map(Cow::Owned));
        }
        finishes
    }

    /// Whether hardware may be asked to hold the rule, as far as it alone is concerned.
    fn may_ask(&self, rule: &Rule, finishing: &BTreeMap<ChainId, bool>) -> bool {
        let [before @ .., last] = rule.actions() else { return false };
        let hands_over = match last {
            Action::Goto(chain) => !finishing.get(chain).is_some_and(|finishes| *finishes),
            Action::Pass => true,
            _ => false,
        };
        (before.is_empty() || !hands_over)
            && (self.chains || rule.offload() == Offload::SkipSw)
            && rule.offload() != Offload::SkipHw
    }

    /// What hands the frames of this rule to software.
    fn trap(&self, rule: &Rule) -> Option<Rule> {
        let prio = trap_prio(rule.prio()).filter(|_| self.traps)?;
        let matching = rule.id().matching().clone();
        let trap = Rule::new(rule.hook(), rule.chain(), prio, matching, [Action::Trap]).ok()?;
        let trap = trap.with_offload(Offload::SkipSw);
        self.profile.accepts(&trap).is_ok().then_some(trap)
    }
}

/// A rule that hardware does not hold.
struct Missing<'r> {
    rule: &'r Rule,
    trap: Option<Rule>,
    /// Its trap stands in hardware.
    trapped: bool,
    /// A later rule of the same actions takes all of its frames in hardware, or its trap does.
    covered: bool,
    /// Without a trap some later rule could not be in hardware.
    harms: bool,
}

impl Missing<'_> {
    fn meets(&self, rule: &Rule) -> bool {
        self.rule.id().matching().overlaps(rule.id().matching())
    }
}
