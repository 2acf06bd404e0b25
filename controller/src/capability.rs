//! What an adapter's hardware takes: its driver's profile, which a probe can only narrow.
//!
//! In: the driver's name, the adapter's uplink and representors. Out: for each ability a rule that
//! needs it, what the profile says to that rule, and with the probe's answers the
//! [`Capabilities`]. Pure. Acceptance proves little (`tc_flows::Profile` says how drivers execute
//! what they take): an answer of the probe never adds an ability that the profile denies.

use std::{collections::BTreeMap, fmt};

use tc_flows::{
    Action, ChainId, Eswitch, Hook, Ice, Ifindex, Mac, Match, Mlx5, Offload, Outcome, Police, Prio,
    Profile, Rule, VlanId, VlanTpid,
};

/// Actions in one rule (`TCA_ACT_MAX_PRIO`, include/uapi/linux/pkt_cls.h).
const ACTIONS_MAX: u32 = 32;
/// Gotos that one frame may take (`max_reclassify_loop`, net/sched/cls_api.c).
const GOTOS_MAX: u32 = 16;
/// The highest chain (`TC_ACT_EXT_VAL_MASK`, include/uapi/linux/pkt_cls.h).
const CHAIN_MAX: u32 = (1 << 28) - 1;
/// The highest prio of a filter (16 bits).
const PRIO_MAX: u32 = 0xffff;

/// Chains that no network has, since theirs begin at 64, and that drivers with few chains have.
const SCRATCH: u32 = 2;
/// No station sends from a group address: whatever a driver makes of chains, no frame meets this.
const NOBODY: Mac = Mac([0x03, 0, 0, 0, 0, 0x01]);

/// Something that a rule can need of hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ability {
    /// Drop a frame.
    Drop,
    /// Send it on.
    Redirect,
    /// Send it to several.
    Copies,
    /// Put a customer's tag on.
    TagPush,
    /// Put a provider's tag on.
    ServiceTagPush,
    /// Take a tag off.
    TagPop,
    /// Send it to one as it is, and to another with a tag: in this order in one rule.
    CopiesThenTag,
    /// Look into chains other than the first, and go on there.
    Chains,
    /// Keep a rate.
    Police,
    /// Hand a frame to software.
    Trap,
}

impl Ability {
    /// All of them.
    pub const ALL: [Ability; 10] = [
        Ability::Drop,
        Ability::Redirect,
        Ability::Copies,
        Ability::TagPush,
        Ability::ServiceTagPush,
        Ability::TagPop,
        Ability::CopiesThenTag,
        Ability::Chains,
        Ability::Police,
        Ability::Trap,
    ];

    /// In a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Ability::Drop => "drop",
            Ability::Redirect => "redirect",
            Ability::Copies => "copies",
            Ability::TagPush => "tag_push",
            Ability::ServiceTagPush => "service_tag_push",
            Ability::TagPop => "tag_pop",
            Ability::CopiesThenTag => "copies_then_tag",
            Ability::Chains => "chains",
            Ability::Police => "police",
            Ability::Trap => "trap",
        }
    }
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where it is known from whether an adapter has an ability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The driver's source, as the profile has it.
    Profile,
    /// The driver's answer to a rule.
    Probe,
}

/// Whether an adapter has an ability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// Whether it has.
    pub available: bool,
    /// Where that is known from.
    pub by: Evidence,
    /// The driver's words, where it has not.
    pub words: Option<String>,
}

/// The most of something that an adapter's hardware takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceilings {
    /// Actions in a rule.
    pub actions: u32,
    /// Gotos that a frame takes.
    pub gotos: u32,
    /// The highest chain.
    pub chain: u32,
    /// The highest prio.
    pub prio: u32,
}

/// What the kernel takes, whatever the hardware.
pub const KERNEL: Ceilings =
    Ceilings { actions: ACTIONS_MAX, gotos: GOTOS_MAX, chain: CHAIN_MAX, prio: PRIO_MAX };

/// What an adapter's hardware takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The profile's name: `mlx5`, `ice` or `generic`.
    pub profile: &'static str,
    /// Each ability.
    pub abilities: BTreeMap<Ability, Capability>,
    /// The ceilings.
    pub ceilings: Ceilings,
}

/// What is known of an adapter before it is asked.
#[derive(Debug)]
pub struct Driver {
    name: &'static str,
    profile: Profile,
    uplink: Ifindex,
    representor: Ifindex,
}

/// The profile of the driver of this name, as it is called, for this eswitch.
pub(crate) fn profile_of(driver: Option<&str>, eswitch: Eswitch) -> (&'static str, Profile) {
    match driver {
        Some("mlx5_core") => ("mlx5", Profile::Mlx5(Mlx5::new(eswitch))),
        Some("ice") => ("ice", Profile::Ice(Ice::new(eswitch))),
        // Nothing is known against it.
        _ => ("generic", Profile::AcceptAll),
    }
}

impl Driver {
    /// The driver of this name, with this uplink and one of its representors.
    pub fn new(name: Option<&str>, uplink: Ifindex, representor: Ifindex) -> Driver {
        let (name, profile) = profile_of(name, Eswitch::new(uplink, [representor]));
        Driver { name, profile, uplink, representor }
    }

    /// The hook at which the rules stand.
    pub fn hook(&self) -> Hook {
        Hook::ingress(self.representor)
    }

    /// A rule, for hardware only, that needs the ability and that no frame meets.
    pub fn rule(&self, ability: Ability) -> Option<Rule> {
        let vid = VlanId::new(1)?;
        let (customer, provider) = (VlanTpid::Dot1Q, VlanTpid::Dot1Ad);
        let push = |tpid| Action::VlanPush { tpid, vid };
        let out = Action::Redirect(self.uplink);
        let copy = Action::Mirror(self.uplink);
        let (matching, mut actions) = match ability {
            Ability::Drop => (Match::any(), vec![Action::Drop]),
            Ability::Redirect => (Match::any(), vec![out]),
            Ability::Copies => (Match::any(), vec![copy, Action::Redirect(self.representor)]),
            Ability::TagPush => (Match::any(), vec![push(customer), out]),
            Ability::ServiceTagPush => (Match::any(), vec![push(provider), out]),
            Ability::TagPop => (Match::vlan(customer, vid), vec![Action::VlanPop, out]),
            Ability::CopiesThenTag => (Match::any(), vec![copy.clone(), push(customer), copy]),
            Ability::Chains => (Match::any(), vec![Action::Goto(ChainId::new(SCRATCH + 1)?)]),
            Ability::Police => {
                let police = Police::bytes(1_250_000, 65_536)?;
                (Match::any(), vec![Action::Police(police.into()), out])
            }
            Ability::Trap => (Match::any(), vec![Action::Trap]),
        };
        if ability == Ability::CopiesThenTag {
            actions.push(Action::Drop);
        }
        let prio = Prio::new(1 + ability as u16)?;
        let chain = ChainId::new(SCRATCH)?;
        let rule = Rule::new(self.hook(), chain, prio, matching.src(NOBODY), actions).ok()?;
        Some(rule.with_offload(Offload::SkipSw))
    }

    /// What the profile says to it: the driver's words where it does not take it.
    ///
    /// # Errors
    /// Those words.
    pub fn permits(&self, rule: &Rule) -> Result<(), String> {
        self.profile.accepts(rule)
    }

    /// The capabilities, from the answers to the rules that the profile permits.
    pub fn judge(&self, answers: &BTreeMap<Ability, Outcome>) -> Capabilities {
        let judged = |ability: Ability| {
            let by_profile = |verdict: Result<(), String>| Capability {
                available: verdict.is_ok(),
                by: Evidence::Profile,
                words: verdict.err().filter(|words| !words.is_empty()),
            };
            let asked = |available, words| Capability { available, by: Evidence::Probe, words };
            let rule = self.rule(ability)?;
            Some(match (self.permits(&rule), answers.get(&ability)) {
                (Ok(()), Some(Outcome::InHw)) => asked(true, None),
                (Ok(()), Some(Outcome::NotInHw { reason })) => asked(false, reason.clone()),
                (Ok(()), Some(Outcome::Refused { errno, message, .. })) => {
                    let errno = || std::io::Error::from_raw_os_error(*errno).to_string();
                    asked(false, Some(message.clone().unwrap_or_else(errno)))
                }
                (verdict, _) => by_profile(verdict),
            })
        };
        let abilities = Ability::ALL
            .into_iter()
            .filter_map(|ability| Some((ability, judged(ability)?)))
            .collect();
        Capabilities { profile: self.name, abilities, ceilings: self.ceilings() }
    }

    fn ceilings(&self) -> Ceilings {
        let (chain, prio) = match &self.profile {
            // FDB_TC_MAX_CHAIN and FDB_TC_MAX_PRIO (fs_core.h), without ignore_flow_level.
            Profile::Mlx5(mlx5) if !mlx5.ignore_flow_level => (3, 16),
            // At the uplink; ice_setup_tc_cls_flower in ice_main.c.
            Profile::Ice(_) => (0, PRIO_MAX),
            _ => (CHAIN_MAX, PRIO_MAX),
        };
        Ceilings { chain, prio, ..KERNEL }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(name: &str) -> Driver {
        Driver::new(Some(name), Ifindex::new(2).unwrap(), Ifindex::new(3).unwrap())
    }

    fn refused(words: &str) -> Outcome {
        Outcome::Refused { errno: 95, message: Some(words.into()), attribute: None }
    }

    #[test]
    fn every_ability_has_a_rule_for_hardware_only_in_a_chain_of_nobodys() {
        for ability in Ability::ALL {
            let rule = driver("netdevsim").rule(ability).unwrap();
            assert_eq!(rule.offload(), Offload::SkipSw, "{ability}");
            assert_eq!(rule.chain().get(), SCRATCH);
            assert_eq!(rule.id().matching().src_mac(), Some((NOBODY, Mac([0xff; 6]))));
        }
    }

    #[test]
    fn a_profile_is_the_drivers_and_unknown_drivers_have_the_one_that_denies_nothing() {
        let name = |driver_name: &str| driver(driver_name).judge(&BTreeMap::new()).profile;
        assert_eq!((name("mlx5_core"), name("ice"), name("netdevsim")), ("mlx5", "ice", "generic"));
        let generic = driver("netdevsim").judge(&BTreeMap::new());
        assert!(generic.abilities.values().all(|c| c.available && c.by == Evidence::Profile));
        let ice = driver("ice").judge(&BTreeMap::new());
        assert!(!ice.abilities[&Ability::Chains].available, "{ice:?}");
        assert_eq!(ice.ceilings.chain, 0);
        assert_eq!(driver("mlx5_core").judge(&BTreeMap::new()).ceilings.chain, 3);
    }

    #[test]
    fn a_probe_narrows_and_never_widens() {
        let taken: BTreeMap<Ability, Outcome> =
            Ability::ALL.map(|ability| (ability, Outcome::InHw)).into();
        let ice = driver("ice");
        let (before, after) = (ice.judge(&BTreeMap::new()), ice.judge(&taken));
        for (ability, capability) in &after.abilities {
            assert_eq!(capability.available, before.abilities[ability].available, "{ability}");
        }
        let answers = BTreeMap::from([
            (Ability::Police, refused("no meters left")),
            (Ability::Drop, Outcome::InHw),
            (Ability::Trap, Outcome::Unknown),
        ]);
        let narrowed = driver("netdevsim").judge(&answers);
        let of = |ability| narrowed.abilities[&ability].clone();
        let no = Capability {
            available: false,
            by: Evidence::Probe,
            words: Some("no meters left".into()),
        };
        assert_eq!(of(Ability::Police), no);
        assert_eq!((of(Ability::Drop).available, of(Ability::Drop).by), (true, Evidence::Probe));
        assert_eq!((of(Ability::Trap).available, of(Ability::Trap).by), (true, Evidence::Profile));
    }
}
