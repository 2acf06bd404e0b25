//! `eswitchd --teardown`, and the same over the API: takes the daemon's flows away, for good.
//!
//! In: a configuration, and the ingress hooks of every netdev of the network namespace. Out: none
//! of the daemon's flows, `hw-tc-offload` off where the daemon had switched it on, and a count. What
//! does not carry its cookie stays, and so do qdiscs (they may have been there before), VF settings
//! and the stored intent: a daemon that starts again installs everything anew.

use nix::net::if_::if_nameindex;
use tc_flows::{Hook, Ifindex, Installed, Kernel, Mode, NetlinkKernel, Op, Outcome, RuleSet, diff};

use crate::{
    config::Config,
    daemon::{DaemonError, FLOW_OWNER, SWITCHED_ON},
    eswitch::EswitchHandle,
    store::RedbStore,
};

/// What a teardown did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Teardown {
    /// Flows taken away.
    pub removed: usize,
    /// Netdevs that had some.
    pub netdevs: usize,
    /// Filters of other owners, left where they are.
    pub foreign: usize,
    /// Netdevs whose `hw-tc-offload` the daemon had switched on, and that is off again.
    pub offload: usize,
    /// What could not be taken away, with the netdev and the kernel's words.
    pub left: Vec<String>,
}

/// Takes away all flows of this daemon, and puts `hw-tc-offload` back, in the network namespace of
/// the calling thread.
///
/// # Errors
/// A daemon with this configuration runs (it would install them again), or the kernel cannot be
/// talked to.
pub fn teardown(config: &Config) -> Result<Teardown, DaemonError> {
    let store = config.state_dir.join("state.redb");
    // Held until the end, so that no daemon starts meanwhile.
    let _store = store.exists().then(|| RedbStore::open(&store)).transpose()?;
    let mut done = flows()?;
    // After the flows: some drivers keep it on while they hold any.
    let eswitch = EswitchHandle::open()?.noting_in(config.state_dir.join(SWITCHED_ON));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (offload, left) =
        runtime.map_err(DaemonError::Runtime)?.block_on(eswitch.put_tc_offload_back());
    done.offload = offload;
    done.left.extend(left);
    Ok(done)
}

/// Takes away all flows under our cookie in the network namespace of the calling thread. Whoever
/// calls sees to it that nobody installs any meanwhile.
///
/// # Errors
/// The kernel cannot be talked to.
pub(crate) fn flows() -> Result<Teardown, DaemonError> {
    let mut kernel = NetlinkKernel::open(FLOW_OWNER)?;
    let interfaces = if_nameindex().map_err(|errno| DaemonError::Runtime(errno.into()))?;
    let netdevs = interfaces.iter().filter_map(|interface| {
        let name = interface.name().to_string_lossy().into_owned();
        Some((name, Ifindex::new(interface.index())?))
    });
    Ok(of(&mut kernel, netdevs))
}

fn of(kernel: &mut dyn Kernel, netdevs: impl Iterator<Item = (String, Ifindex)>) -> Teardown {
    let mut done = Teardown::default();
    for (name, ifindex) in netdevs {
        let removed = done.removed;
        for hook in [Hook::ingress(ifindex), Hook::egress(ifindex)] {
            at_hook(kernel, &name, hook, &mut done);
        }
        done.netdevs += usize::from(done.removed > removed);
    }
    done
}

fn at_hook(kernel: &mut dyn Kernel, name: &str, hook: Hook, done: &mut Teardown) {
    let dump = match kernel.dump_consistent(hook) {
        Ok(dump) => dump,
        Err(error) => {
            done.left.push(format!("{name}: {error}"));
            return;
        }
    };
    done.foreign += dump.foreign.len();
    let mut installed = Installed::new();
    installed.adopt(&dump);
    let ops: Vec<Op> = diff(&installed, &RuleSet::new()).ops;
    let outcomes = kernel.apply(&ops, Mode::Told);
    done.removed += outcomes.iter().filter(|outcome| outcome.is_done()).count();
    for (op, outcome) in ops.iter().zip(&outcomes).filter(|(_, outcome)| !outcome.is_done()) {
        let why = match outcome {
            Outcome::Refused { errno, message, .. } => message
                .clone()
                .unwrap_or_else(|| std::io::Error::from_raw_os_error(*errno).to_string()),
            _ => "not known whether it is gone".to_owned(),
        };
        let (id, handle) = (op.id(), op.handle());
        let (chain, prio) = (id.chain().get(), id.prio().get());
        done.left.push(format!("{name}: chain {chain} prio {prio} handle {handle}: {why}"));
    }
}

#[cfg(test)]
mod tests {
    use tc_flows::{Action, ChainId, FakeKernel, Foreign, Handle, Mac, Match, Owner, Prio, Rule};

    use super::*;

    fn rules(hook: Hook) -> Vec<Rule> {
        let (first, second) = (ChainId::ZERO, ChainId::new(5).unwrap());
        let prio = Prio::new(1).unwrap();
        let source = Match::any().src(Mac([2, 0, 0, 0, 0, 1]));
        [
            Rule::new(hook, second, prio, Match::any(), [Action::Drop]),
            Rule::new(hook, first, prio, source, [Action::Goto(second)]),
        ]
        .map(Result::unwrap)
        .into()
    }

    #[test]
    fn what_is_ours_goes_and_everything_else_stays() {
        let netdevs = [7, 8, 9].map(|index| Ifindex::new(index).unwrap());
        let [mine, other, bare] = netdevs.map(Hook::ingress);
        let mut kernel = FakeKernel::new(FLOW_OWNER);
        kernel.set_interfaces(netdevs);
        let add = |rule| Op::Add { rule, handle: Handle(1) };
        for hook in [mine, other] {
            kernel.ensure_hook(hook).unwrap();
        }
        for rule in rules(mine) {
            assert!(kernel.apply(&[add(rule)], Mode::Told)[0].is_done());
        }
        kernel.set_owner(Owner(*b"else"));
        for rule in rules(other) {
            assert!(kernel.apply(&[add(rule)], Mode::Told)[0].is_done());
        }
        kernel.set_owner(FLOW_OWNER);
        let foreign = Foreign {
            chain: 0,
            prio: 50_000,
            protocol: 3,
            handle: Handle(1),
            kind: "bpf".to_owned(),
            owner: None,
        };
        kernel.add_foreign(mine, foreign);

        let named = netdevs.map(|ifindex| (format!("if{}", ifindex.get()), ifindex));
        let done = of(&mut kernel, named.into_iter());
        let expected = Teardown { removed: 2, netdevs: 1, foreign: 3, ..Teardown::default() };
        assert_eq!(done, expected);
        assert!(kernel.rules().eq(rules(other).iter().rev()));
        assert!(!kernel.dump(bare).unwrap().hook_present);
    }

    #[test]
    fn what_the_kernel_does_not_let_go_is_named() {
        let ifindex = Ifindex::new(7).unwrap();
        let hook = Hook::ingress(ifindex);
        let mut kernel = FakeKernel::new(FLOW_OWNER);
        kernel.set_interfaces([ifindex]);
        kernel.ensure_hook(hook).unwrap();
        for rule in rules(hook) {
            kernel.apply(&[Op::Add { rule, handle: Handle(1) }], Mode::Told);
        }
        kernel.refuse_changes(1, 16);
        let done = of(&mut kernel, [("rep0".to_owned(), ifindex)].into_iter());
        assert_eq!((done.removed, done.left.len()), (1, 1));
        assert!(done.left[0].starts_with("rep0: chain 0 prio 1"), "{done:?}");
    }
}
