//! What every kernel does, asked of any: the one list of behaviours that the fake kernel and the
//! real one are both held to.
//!
//! In comes a [`Place`], a kernel and the means to make its interfaces appear and vanish; out come
//! the sentences of the list that are not true of it. Each behaviour
//! makes interfaces of its own, so that one place serves them all. Nothing here knows which kernel
//! it asks.

use std::panic::AssertUnwindSafe;

use crate::action::Action;
use crate::diff::{Installed, Op, diff};
use crate::ident::{ChainId, Handle, Hook, Ifindex, Mac, Prio, VlanId, VlanTpid};
use crate::kernel::{Dump, Error, HwState, Kernel, Mode, Outcome};
use crate::key::Match;
use crate::rule::{Offload, Owner, Rule};
use crate::set::RuleSet;
use crate::watch::{Change, Notice, SeenFilter, Sender};

/// A kernel with interfaces that can be told to come and go. None of them has hardware offload.
pub trait Place: Kernel {
    /// From now on it speaks for this owner.
    fn speak_for(&mut self, owner: Owner);

    /// A new interface, up, without a qdisc.
    fn add_interface(&mut self) -> Ifindex;

    /// This interface vanishes.
    fn remove_interface(&mut self, gone: Ifindex);

    /// Somebody else gives the interface an `ingress` qdisc, which has no egress hook.
    fn add_ingress_qdisc(&mut self, at: Ifindex);

    /// Somebody else installs a filter of the kind `matchall` in chain 2 at prio 8 of the
    /// interface's ingress hook, which is there.
    fn add_matchall(&mut self, at: Ifindex);

    /// From now on it listens for changes, its own among them, for the present owner.
    fn watch(&mut self);

    /// What it heard since the last call, at least up to what was changed before this one.
    fn notices(&mut self) -> Vec<Notice>;
}

/// The owner that behaviours speak for, where they do not say otherwise.
pub const OWNER: Owner = Owner(*b"test");

/// A sentence, and what asks whether it is true.
pub type Behaviour<P> = (&'static str, fn(&mut P));

/// Every behaviour, by its sentence.
pub fn behaviours<P: Place>() -> Vec<Behaviour<P>> {
    vec![
        ("a hook that was not made is absent and holds nothing", hook_absent),
        ("a hook is made once and both directions with it", hook_made),
        ("an ingress qdisc that exists is used and has no egress hook", ingress_qdisc),
        ("at an interface that is not there no hook is made, and a dump is empty", no_interface),
        ("without a hook a rule is refused", no_hook),
        ("a rule that was added is read back as it is", add_reads_back),
        ("what a handle of the prio holds is not added again", add_exists),
        ("two handles of a prio do not hold one match", same_match),
        ("a replacement keeps handle and place and changes the rest", replace),
        ("a replacement of nothing is an addition", replace_nothing),
        ("a replacement may match another value, but not through another mask", replace_match),
        ("to delete what is not there is done", delete_nothing),
        ("a deletion takes its handle and leaves the others", delete_one),
        ("a prio holds one protocol", protocol_mismatch),
        ("a prio that was emptied takes another protocol", protocol_after_delete),
        ("one bad change among many fails alone, and each has its outcome", one_bad),
        ("changes are carried out in their order", in_order),
        ("without hardware a rule is in software, and hardware-only ones are refused", no_hardware),
        ("rules of another owner are foreign and left alone", other_owner),
        ("filters of another kind are foreign and left alone", other_kind),
        ("a rule that leads to nowhere is refused", no_destination),
        ("a rule whose destination vanished is unreadable and goes by its place", vanished),
        ("of two destinations one that vanished is enough", one_of_two_vanished),
        ("an interface takes its rules with it", hook_vanished),
        ("a terse dump shows the rules of a full one by place and cookie", terse),
        ("a watch tells of each change of filters what is there now, and who made it", watched),
        ("chains and prios are apart", places_apart),
        ("what was told and adopted needs no change", adopted),
    ]
}

/// Asks for every behaviour in turn; out come the sentences that are not true. (What was asked
/// and answered stands in the message of the panic that each of them caused.)
pub fn untrue<P: Place>(place: &mut P) -> Vec<&'static str> {
    let asked = behaviours::<P>().into_iter().filter(|(_, behaviour)| {
        place.speak_for(OWNER);
        std::panic::catch_unwind(AssertUnwindSafe(|| behaviour(place))).is_err()
    });
    asked.map(|(sentence, _)| sentence).collect()
}

// ---------------------------------------------------------------- words

const EINVAL: i32 = nix::errno::Errno::EINVAL as i32;
const EEXIST: i32 = nix::errno::Errno::EEXIST as i32;
const ENODEV: i32 = nix::errno::Errno::ENODEV as i32;
const EOPNOTSUPP: i32 = nix::errno::Errno::EOPNOTSUPP as i32;

const BOTH: [Mode; 2] = [Mode::Fast, Mode::Told];

fn chain(number: u32) -> ChainId {
    ChainId::new(number).unwrap_or(ChainId::ZERO)
}

fn prio(number: u16) -> Prio {
    Prio::new(number).unwrap_or(Prio::FIRST)
}

fn source(last: u8) -> Match {
    Match::any().src(Mac([2, 0, 0, 0, 0, last]))
}

fn tagged() -> Match {
    Match::tagged(VlanTpid::Dot1Q)
}

#[expect(clippy::expect_used, reason = "the lists here are valid rules")]
fn rule_at(hook: Hook, at: (u32, u16), matching: Match, actions: &[Action]) -> Rule {
    Rule::new(hook, chain(at.0), prio(at.1), matching, actions).expect("a rule")
}

fn rule(hook: Hook, matching: Match, action: Action) -> Rule {
    rule_at(hook, (0, 1), matching, &[action])
}

fn add(rule: &Rule, handle: u32) -> Op {
    Op::Add { rule: rule.clone(), handle: Handle(handle) }
}

fn replace_by(rule: &Rule, handle: u32) -> Op {
    Op::Replace { rule: rule.clone(), handle: Handle(handle) }
}

fn delete(rule: &Rule, handle: u32) -> Op {
    Op::Delete { id: rule.id().clone(), handle: Handle(handle) }
}

/// What a new rule's outcome is without hardware.
fn installed(mode: Mode) -> Outcome {
    match mode {
        Mode::Fast => Outcome::Installed,
        Mode::Told => Outcome::NotInHw { reason: None },
    }
}

fn hook<P: Place>(place: &mut P) -> Hook {
    let hook = Hook::ingress(place.add_interface());
    assert!(place.ensure_hook(hook).is_ok());
    hook
}

fn dump<P: Place>(place: &mut P, hook: Hook) -> Dump {
    match place.dump(hook) {
        Ok(dump) => dump,
        Err(error) => panic!("{error}"),
    }
}

/// Rules and handles, in no order of the kernel's.
fn held<P: Place>(place: &mut P, hook: Hook) -> Vec<(Rule, u32)> {
    let dump = dump(place, hook);
    assert!(dump.unreadable_own.is_empty(), "{dump:?}");
    let mut held: Vec<(Rule, u32)> =
        dump.own.into_iter().map(|own| (own.rule, own.handle.0)).collect();
    held.sort();
    held
}

fn done<P: Place>(place: &mut P, ops: &[Op], mode: Mode) {
    for (op, outcome) in ops.iter().zip(place.apply(ops, mode)) {
        assert!(outcome.is_done(), "{op:?}: {outcome:?}");
    }
}

fn refused(outcome: &Outcome) -> Option<(i32, Option<&str>)> {
    match outcome {
        Outcome::Refused { errno, message, .. } => Some((*errno, message.as_deref())),
        _ => None,
    }
}

// ---------------------------------------------------------------- hooks

fn hook_absent<P: Place>(place: &mut P) {
    let interface = place.add_interface();
    for hook in [Hook::ingress(interface), Hook::egress(interface)] {
        assert_eq!(dump(place, hook), Dump::default());
    }
}

fn hook_made<P: Place>(place: &mut P) {
    let interface = place.add_interface();
    for hook in [Hook::ingress(interface), Hook::egress(interface)] {
        for _ in 0..2 {
            assert!(place.ensure_hook(Hook::ingress(interface)).is_ok());
            assert_eq!(dump(place, hook), Dump { hook_present: true, ..Dump::default() });
        }
        assert!(place.ensure_hook(hook).is_ok());
    }
    // What stands in one direction does not stand in the other.
    let rule = rule(Hook::egress(interface), source(1), Action::Drop);
    done(place, &[add(&rule, 1)], Mode::Fast);
    assert_eq!(held(place, Hook::ingress(interface)), []);
    assert_eq!(held(place, Hook::egress(interface)), [(rule, 1)]);
}

fn ingress_qdisc<P: Place>(place: &mut P) {
    let interface = place.add_interface();
    place.add_ingress_qdisc(interface);
    let (ingress, egress) = (Hook::ingress(interface), Hook::egress(interface));
    assert!(place.ensure_hook(ingress).is_ok());
    assert!(dump(place, ingress).hook_present);
    let rule = rule(ingress, source(1), Action::Drop);
    done(place, &[add(&rule, 1)], Mode::Fast);
    assert_eq!(held(place, ingress), [(rule, 1)]);
    // There the rules would meet the wrong frames.
    assert!(matches!(place.ensure_hook(egress), Err(Error::Refused { errno: EEXIST, .. })));
    assert_eq!(dump(place, egress), Dump::default());
}

fn no_interface<P: Place>(place: &mut P) {
    let gone = place.add_interface();
    place.remove_interface(gone);
    let hook = Hook::ingress(gone);
    assert!(matches!(place.ensure_hook(hook), Err(Error::Refused { errno: ENODEV, .. })));
    assert_eq!(dump(place, hook), Dump::default());
    for mode in BOTH {
        let rule = rule(hook, source(1), Action::Drop);
        let outcomes = place.apply(&[add(&rule, 1), delete(&rule, 1)], mode);
        assert_eq!(refused(&outcomes[0]).map(|(errno, _)| errno), Some(ENODEV));
        assert_eq!(outcomes[1], Outcome::Deleted);
    }
}

fn no_hook<P: Place>(place: &mut P) {
    let hook = Hook::ingress(place.add_interface());
    for mode in BOTH {
        let outcomes = place.apply(&[add(&rule(hook, source(1), Action::Drop), 1)], mode);
        assert_eq!(refused(&outcomes[0]).map(|(errno, _)| errno), Some(EINVAL), "{outcomes:?}");
    }
    assert_eq!(dump(place, hook), Dump::default());
}

// ---------------------------------------------------------------- single changes

fn add_reads_back<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let to = place.add_interface();
        let rule = rule_at(
            hook,
            (7, 20),
            Match::vlan(VlanTpid::Dot1Q, VlanId::new(5).unwrap_or(NO_VLAN)).src(Mac([2; 6])),
            &[Action::VlanPop, Action::Mirror(to), Action::Drop],
        );
        assert_eq!(place.apply(&[add(&rule, 9)], mode), [installed(mode)]);
        let dump = dump(place, hook);
        assert!(dump.hook_present);
        let [own] = &dump.own[..] else { panic!("{dump:?}") };
        assert_eq!((&own.rule, own.handle, &own.hw), (&rule, Handle(9), &HwState::NotInHw(None)));
        assert_eq!(
            (own.in_hw_count, own.stats.software.packets, own.stats.hardware.packets),
            (0, 0, 0)
        );
        assert!(dump.foreign.is_empty());
    }
}

const NO_VLAN: VlanId = match VlanId::new(0) {
    Some(vid) => vid,
    None => unreachable!(),
};

fn add_exists<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let first = rule(hook, source(1), Action::Drop);
        done(place, &[add(&first, 1)], mode);
        let other = rule(hook, source(2), Action::Drop);
        for again in [&first, &other] {
            let outcomes = place.apply(&[add(again, 1)], mode);
            assert_eq!(refused(&outcomes[0]), Some((EEXIST, Some("Filter already exists"))));
        }
        assert_eq!(held(place, hook), [(first, 1)]);
    }
}

fn same_match<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let first = rule(hook, source(1), Action::Drop);
        let again = rule(hook, source(1), Action::Pass);
        done(place, &[add(&first, 1)], mode);
        for op in [add(&again, 2), replace_by(&again, 2)] {
            let outcomes = place.apply(&[op], mode);
            assert_eq!(refused(&outcomes[0]).map(|(errno, _)| errno), Some(EEXIST));
        }
        assert_eq!(held(place, hook), [(first, 1)]);
    }
}

fn replace<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let before = rule(hook, source(1), Action::Drop);
        let after = rule(hook, source(1), Action::Pass);
        let ops = [add(&before, 3), replace_by(&after, 3)];
        assert_eq!(place.apply(&ops, mode), [installed(mode), installed(mode)]);
        assert_eq!(held(place, hook), [(after, 3)]);
    }
}

fn replace_nothing<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let rule = rule(hook, source(1), Action::Drop);
        assert_eq!(place.apply(&[replace_by(&rule, 3)], mode), [installed(mode)]);
        assert_eq!(held(place, hook), [(rule, 3)]);
    }
}

fn replace_match<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let before = rule(hook, source(1), Action::Drop);
        let after = rule(hook, source(2), Action::Drop);
        let other = rule(hook, Match::any().dst(Mac([2; 6])), Action::Drop);
        done(place, &[add(&before, 1), replace_by(&after, 1)], mode);
        let outcomes = place.apply(&[replace_by(&other, 1)], mode);
        assert_eq!(refused(&outcomes[0]).map(|(errno, _)| errno), Some(EINVAL), "{outcomes:?}");
        assert_eq!(held(place, hook), [(after, 1)]);
    }
}

fn delete_nothing<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let rule = rule(hook, source(1), Action::Drop);
        // No such prio, then none of its handles.
        assert_eq!(place.apply(&[delete(&rule, 1)], mode), [Outcome::Deleted]);
        done(place, &[add(&rule, 1)], mode);
        assert_eq!(place.apply(&[delete(&rule, 2)], mode), [Outcome::Deleted]);
        assert_eq!(held(place, hook), [(rule, 1)]);
    }
    let without = Hook::ingress(place.add_interface());
    let rule = rule(without, source(1), Action::Drop);
    let outcomes = place.apply(&[delete(&rule, 1)], Mode::Fast);
    assert_eq!(refused(&outcomes[0]).map(|(errno, _)| errno), Some(EINVAL), "{outcomes:?}");
}

fn delete_one<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let (one, two) = (rule(hook, source(1), Action::Drop), rule(hook, source(2), Action::Drop));
        done(place, &[add(&one, 1), add(&two, 2)], mode);
        assert_eq!(place.apply(&[delete(&one, 1)], mode), [Outcome::Deleted]);
        assert_eq!(held(place, hook), [(two, 2)]);
    }
}

const MISMATCH: &str = "Protocol mismatch for filter with specified priority";

fn protocol_mismatch<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let first = rule(hook, source(1), Action::Drop);
        let other = rule(hook, tagged(), Action::Drop);
        done(place, &[add(&first, 1)], mode);
        for op in [add(&other, 2), replace_by(&other, 1)] {
            let outcomes = place.apply(&[op], mode);
            assert_eq!(refused(&outcomes[0]), Some((EINVAL, Some(MISMATCH))));
        }
        assert_eq!(held(place, hook), [(first, 1)]);
    }
}

fn protocol_after_delete<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let first = rule(hook, source(1), Action::Drop);
        let other = rule(hook, tagged(), Action::Drop);
        done(place, &[add(&first, 1), delete(&first, 1), add(&other, 1)], mode);
        assert_eq!(held(place, hook), [(other, 1)]);
    }
}

// ---------------------------------------------------------------- many changes

fn one_bad<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let good = |n| rule(hook, source(n), Action::Drop);
        let mut ops: Vec<Op> = (0..100).map(|n| add(&good(n), u32::from(n) + 1)).collect();
        ops[40] = add(&rule(hook, tagged(), Action::Drop), 41);
        let outcomes = place.apply(&ops, mode);
        assert_eq!(outcomes.len(), 100);
        for (at, outcome) in outcomes.iter().enumerate() {
            if at == 40 {
                assert_eq!(refused(outcome), Some((EINVAL, Some(MISMATCH))));
            } else {
                assert_eq!(*outcome, installed(mode), "{at}");
            }
        }
        assert_eq!(held(place, hook).len(), 99);
    }
    assert_eq!(place.apply(&[], Mode::Fast), []);
}

fn in_order<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let rule = rule(hook, source(1), Action::Drop);
        let ops = [add(&rule, 1), add(&rule, 1), delete(&rule, 1), add(&rule, 1)];
        let outcomes = place.apply(&ops, mode);
        assert_eq!(refused(&outcomes[1]).map(|(errno, _)| errno), Some(EEXIST));
        assert_eq!(
            [&outcomes[0], &outcomes[2], &outcomes[3]],
            [&installed(mode), &Outcome::Deleted, &installed(mode)]
        );
        assert_eq!(held(place, hook), [(rule, 1)]);
    }
}

// ---------------------------------------------------------------- hardware, owners

fn no_hardware<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let plain = rule(hook, source(1), Action::Drop);
        let software = rule(hook, source(2), Action::Drop).with_offload(Offload::SkipHw);
        let hardware = rule(hook, source(3), Action::Drop).with_offload(Offload::SkipSw);
        let ops = [add(&plain, 1), add(&software, 2), add(&hardware, 3)];
        let outcomes = place.apply(&ops, mode);
        assert_eq!(outcomes[..2], [installed(mode), installed(mode)]);
        assert_eq!(refused(&outcomes[2]), Some((EOPNOTSUPP, None)), "{outcomes:?}");
        let dump = dump(place, hook);
        assert!(dump.own.iter().all(|own| own.hw == HwState::NotInHw(None)));
        assert_eq!(held(place, hook), [(plain, 1), (software, 2)]);
    }
}

fn other_owner<P: Place>(place: &mut P) {
    let hook = hook(place);
    let theirs = rule(hook, source(1), Action::Drop);
    place.speak_for(Owner(*b"them"));
    done(place, &[add(&theirs, 1)], Mode::Fast);
    place.speak_for(OWNER);
    let dump = dump(place, hook);
    assert!(dump.own.is_empty() && dump.unreadable_own.is_empty());
    let [foreign] = &dump.foreign[..] else { panic!("{dump:?}") };
    let place_of = (foreign.chain, foreign.prio, foreign.protocol, foreign.handle);
    assert_eq!(place_of, (0, 1, 3, Handle(1)));
    assert_eq!((foreign.kind.as_str(), foreign.owner), ("flower", Some(Owner(*b"them"))));
    // Its place is taken, and stays so.
    let outcomes = place.apply(&[add(&rule(hook, source(2), Action::Pass), 1)], Mode::Fast);
    assert_eq!(refused(&outcomes[0]), Some((EEXIST, Some("Filter already exists"))));
    place.speak_for(Owner(*b"them"));
    assert_eq!(held(place, hook), [(theirs, 1)]);
}

fn other_kind<P: Place>(place: &mut P) {
    let interface = place.add_interface();
    let hook = Hook::ingress(interface);
    assert!(place.ensure_hook(hook).is_ok());
    place.add_matchall(interface);
    let mine = rule(hook, source(1), Action::Drop);
    done(place, &[add(&mine, 1)], Mode::Fast);
    let dump = dump(place, hook);
    let [foreign] = &dump.foreign[..] else { panic!("{dump:?}") };
    assert_eq!((foreign.chain, foreign.prio, foreign.kind.as_str()), (2, 8, "matchall"));
    assert_eq!(held(place, hook), [(mine, 1)]);
}

// ---------------------------------------------------------------- what vanishes

fn no_destination<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let gone = place.add_interface();
        place.remove_interface(gone);
        for actions in [&[Action::Redirect(gone)][..], &[Action::Mirror(gone), Action::Drop]] {
            let rule = rule_at(hook, (0, 1), source(1), actions);
            let outcomes = place.apply(&[add(&rule, 1)], mode);
            let errno = refused(&outcomes[0]).map(|(errno, _)| errno);
            assert_eq!(errno, Some(ENODEV), "{outcomes:?}");
        }
        assert_eq!(held(place, hook), []);
    }
}

fn vanished<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        let to = place.add_interface();
        let lost = rule_at(hook, (4, 1), tagged(), &[Action::Redirect(to)]);
        let kept = rule_at(hook, (4, 2), tagged(), &[Action::Drop]);
        done(place, &[add(&lost, 3), add(&kept, 1)], mode);
        place.remove_interface(to);
        let dump = dump(place, hook);
        let own: Vec<(&Rule, Handle)> =
            dump.own.iter().map(|own| (&own.rule, own.handle)).collect();
        assert_eq!(own, [(&kept, Handle(1))]);
        let [(location, handle)] = dump.unreadable_own[..] else { panic!("{dump:?}") };
        let delete = Op::delete_at(location, handle);
        assert_eq!(place.apply(&[delete], mode), [Outcome::Deleted]);
        assert_eq!(held(place, hook), [(kept, 1)]);
    }
}

fn one_of_two_vanished<P: Place>(place: &mut P) {
    let hook = hook(place);
    let (to, gone) = (place.add_interface(), place.add_interface());
    let rule = rule_at(hook, (0, 1), tagged(), &[Action::Mirror(gone), Action::Redirect(to)]);
    done(place, &[add(&rule, 1)], Mode::Fast);
    place.remove_interface(gone);
    let before = dump(place, hook);
    assert_eq!((before.own.len(), before.unreadable_own.len()), (0, 1), "{before:?}");
    // In its place another may be put.
    let after = rule_at(hook, (0, 1), tagged(), &[Action::Redirect(to)]);
    done(place, &[replace_by(&after, 1)], Mode::Told);
    assert_eq!(held(place, hook), [(after, 1)]);
}

fn hook_vanished<P: Place>(place: &mut P) {
    let interface = place.add_interface();
    let hook = Hook::ingress(interface);
    assert!(place.ensure_hook(hook).is_ok());
    let rule = rule(hook, source(1), Action::Drop);
    done(place, &[add(&rule, 1)], Mode::Fast);
    place.remove_interface(interface);
    assert_eq!(dump(place, hook), Dump::default());
    assert_eq!(place.apply(&[delete(&rule, 1)], Mode::Told), [Outcome::Deleted]);
}

// ---------------------------------------------------------------- notifications

/// A change of a filter: what kind of change it was, the handle, and the rule where it is own.
type Heard = (&'static str, Handle, Option<Rule>, Sender);

fn heard<P: Place>(place: &mut P, at: Hook) -> Vec<Heard> {
    let filters = place.notices().into_iter().filter_map(|notice| {
        let Notice::Changed { change, by } = notice else { panic!("{notice:?}") };
        let (kind, hook, filter) = match change {
            Change::FilterAdded { hook, filter } => ("added", hook, filter),
            Change::FilterSet { hook, filter } => ("set", hook, filter),
            Change::FilterDeleted { hook, filter } => ("deleted", hook, filter),
            // Not every kernel here tells of chains and actions.
            _ => return None,
        };
        let (_, _, handle) = filter.place();
        let rule = match filter {
            SeenFilter::Own(own) => Some(own.rule),
            SeenFilter::UnreadableOwn(..) | SeenFilter::Foreign(_) => None,
        };
        (hook == at).then_some((kind, handle, rule, by))
    });
    filters.collect()
}

fn watched<P: Place>(place: &mut P) {
    for mode in BOTH {
        let hook = hook(place);
        place.watch();
        let before = rule(hook, source(1), Action::Drop);
        let after = rule(hook, source(1), Action::Pass);
        // The second addition is refused, and nobody hears of it.
        done(place, &[add(&before, 3)], mode);
        place.apply(&[add(&before, 3)], mode);
        done(place, &[replace_by(&after, 3), delete(&after, 3), delete(&after, 3)], mode);
        let ours = Sender::Ours;
        assert_eq!(
            heard(place, hook),
            [
                ("added", Handle(3), Some(before), ours),
                ("set", Handle(3), Some(after.clone()), ours),
                ("deleted", Handle(3), Some(after), ours),
            ]
        );
        place.speak_for(Owner(*b"them"));
        done(place, &[add(&rule(hook, source(2), Action::Drop), 4)], mode);
        let [(kind, handle, rule, by)] = &heard(place, hook)[..] else { panic!("not one change") };
        assert_eq!((*kind, *handle, rule), ("added", Handle(4), &None));
        assert!(matches!(by, Sender::Other(_)), "{by:?}");
        place.speak_for(OWNER);
    }
}

// ---------------------------------------------------------------- many places

fn terse<P: Place>(place: &mut P) {
    let hook = hook(place);
    let theirs = rule_at(hook, (1, 1), source(1), &[Action::Drop]);
    place.speak_for(Owner(*b"them"));
    done(place, &[add(&theirs, 1)], Mode::Fast);
    place.speak_for(OWNER);
    let to = place.add_interface();
    let rules = [
        rule_at(hook, (0, 1), source(1), &[Action::Goto(chain(5))]),
        rule_at(hook, (5, 1), tagged(), &[Action::VlanPop, Action::Redirect(to)]),
    ];
    done(place, &[add(&rules[0], 1), add(&rules[1], 2)], Mode::Fast);
    let terse = match place.dump_terse(hook) {
        Ok(terse) => terse,
        Err(error) => panic!("{error}"),
    };
    assert!(terse.hook_present);
    assert_eq!(terse.foreign, dump(place, hook).foreign);
    assert_eq!(terse.own.len(), rules.len());
    for (rule, handle) in rules.iter().zip([1, 2]) {
        let found = terse.own.iter().filter(|own| own.is(rule, OWNER));
        let found: Vec<(Handle, &HwState)> = found.map(|own| (own.handle, &own.hw)).collect();
        assert_eq!(found, [(Handle(handle), &HwState::NotInHw(None))]);
    }
}

fn places_apart<P: Place>(place: &mut P) {
    let hook = hook(place);
    let mut rules: Vec<Rule> = [(0, 1), (0, 2), (1, 1), (1 << 20, 65_535)]
        .map(|at| rule_at(hook, at, source(1), &[Action::Drop]))
        .into();
    // One handle in each.
    let ops: Vec<Op> = rules.iter().map(|rule| add(rule, 1)).collect();
    done(place, &ops, Mode::Told);
    done(place, &[delete(&rules[1], 1)], Mode::Told);
    rules.remove(1);
    rules.sort();
    assert_eq!(held(place, hook), rules.into_iter().map(|rule| (rule, 1)).collect::<Vec<_>>());
}

fn adopted<P: Place>(place: &mut P) {
    let hook = hook(place);
    let to = place.add_interface();
    let mut wanted = RuleSet::new();
    let rules = [
        rule_at(hook, (0, 1), source(1), &[Action::Goto(chain(5))]),
        rule_at(hook, (0, 2), tagged(), &[Action::Drop]),
        rule_at(hook, (5, 1), Match::any().dst(Mac([2; 6])), &[Action::Redirect(to)]),
        rule_at(hook, (5, 2), Match::any(), &[Action::Drop]),
    ];
    for rule in rules {
        assert!(wanted.insert(rule).is_ok());
    }
    let mut told = Installed::new();
    let ops = diff(&told, &wanted).ops;
    for (op, outcome) in ops.iter().zip(place.apply(&ops, Mode::Told)) {
        assert!(outcome.is_done(), "{op:?}: {outcome:?}");
        told.record(op, &outcome);
    }
    let mut adopted = Installed::new();
    adopted.adopt(&dump(place, hook));
    assert_eq!(adopted, told);
    assert_eq!(diff(&adopted, &wanted).ops, []);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeKernel;
    use crate::kernel::Foreign;

    impl Place for FakeKernel {
        fn speak_for(&mut self, owner: Owner) {
            self.set_owner(owner);
        }

        fn add_interface(&mut self) -> Ifindex {
            FakeKernel::add_interface(self)
        }

        fn remove_interface(&mut self, gone: Ifindex) {
            FakeKernel::remove_interface(self, gone);
        }

        fn add_ingress_qdisc(&mut self, at: Ifindex) {
            FakeKernel::add_ingress_qdisc(self, at);
        }

        fn add_matchall(&mut self, at: Ifindex) {
            let (chain, prio, protocol, handle) = (2, 8, 3, Handle(1));
            let kind = "matchall".to_owned();
            let foreign = Foreign { chain, prio, protocol, handle, kind, owner: None };
            self.add_foreign(Hook::ingress(at), foreign);
        }

        fn watch(&mut self) {
            FakeKernel::watch(self);
        }

        fn notices(&mut self) -> Vec<Notice> {
            FakeKernel::notices(self)
        }
    }

    #[test]
    fn the_fake_kernel_does_what_every_kernel_does() {
        let mut kernel = FakeKernel::new(OWNER);
        kernel.set_interfaces([]);
        assert_eq!(untrue(&mut kernel), [""; 0]);
    }
}
