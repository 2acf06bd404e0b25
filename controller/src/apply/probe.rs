//! The probe: asks an adapter's driver for one rule of each ability, and takes each away again.
//!
//! In: what is known of the driver, a kernel connection of the probe's own. Out: the adapter's
//! capabilities. The rules are for hardware only, in a chain that nothing leads to, and match what
//! no station sends: no frame meets them. They bear a cookie of their own, so that those of a probe
//! that was killed are found and taken away by the next.

use std::collections::BTreeMap;

use tc_flows::{Handle, Hook, Kernel, Mode, Op, Outcome, Owner};

use crate::capability::{Ability, Capabilities, Driver};

/// How the probe's rules are known.
pub(crate) const PROBE_OWNER: Owner = Owner(*b"eswp");

/// Asks for everything that the profile permits.
///
/// # Errors
/// The hook cannot be made or read, or it is not known whether all rules are gone again.
pub(crate) fn probe(
    kernel: &mut dyn Kernel,
    driver: &Driver,
) -> Result<Capabilities, tc_flows::Error> {
    let hook = driver.hook();
    kernel.ensure_hook(hook)?;
    clear(kernel, hook)?;
    let mut answers = BTreeMap::new();
    for ability in Ability::ALL {
        let permitted = |rule: &tc_flows::Rule| driver.permits(rule).is_ok();
        let Some(rule) = driver.rule(ability).filter(permitted) else { continue };
        let (id, handle) = (rule.id().clone(), Handle(1));
        let outcome = kernel.apply(&[Op::Add { rule, handle }], Mode::Told).pop();
        if outcome.as_ref().is_some_and(|outcome| !matches!(outcome, Outcome::Refused { .. })) {
            kernel.apply(&[Op::Delete { id, handle }], Mode::Told);
        }
        answers.extend(outcome.map(|outcome| (ability, outcome)));
    }
    // Of a netdev that is gone by now nothing is known.
    kernel.ensure_hook(hook)?;
    // Where an answer was lost its rule may still stand.
    clear(kernel, hook)?;
    Ok(driver.judge(&answers))
}

/// Takes away what is there of probes.
fn clear(kernel: &mut dyn Kernel, hook: Hook) -> Result<(), tc_flows::Error> {
    let left = kernel.dump(hook)?;
    let rules = left.own.iter();
    let rules = rules.map(|own| Op::Delete { id: own.rule.id().clone(), handle: own.handle });
    let places = left.unreadable_own.iter();
    let places = places.map(|(location, handle)| Op::delete_at(*location, *handle));
    let outcomes = kernel.apply(&rules.chain(places).collect::<Vec<Op>>(), Mode::Told);
    match outcomes.contains(&Outcome::Unknown) {
        true => Err(tc_flows::Error::NoAnswer { request: "take the probe's rules away" }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tc_flows::{Action, FakeKernel, Ifindex, Profile};

    use super::*;
    use crate::capability::Evidence;

    fn ifindex(number: u32) -> Ifindex {
        Ifindex::new(number).unwrap()
    }

    fn driver() -> Driver {
        Driver::new(Some("netdevsim"), ifindex(2), ifindex(3))
    }

    fn kernel() -> FakeKernel {
        let mut kernel = FakeKernel::new(PROBE_OWNER);
        kernel.set_interfaces([ifindex(2), ifindex(3)]);
        kernel.set_profile(Profile::AcceptAll);
        kernel
    }

    #[test]
    fn what_the_driver_refuses_is_no_ability_and_nothing_is_left_behind() {
        let mut kernel = kernel();
        kernel.set_driver(|rule| match rule.actions() {
            [Action::Police(_), ..] => Err("no meters".to_owned()),
            _ => Ok(()),
        });
        let capabilities = probe(&mut kernel, &driver()).unwrap();
        for (ability, capability) in &capabilities.abilities {
            assert_eq!(capability.available, *ability != Ability::Police, "{ability}");
            assert_eq!(capability.by, Evidence::Probe, "{ability}");
        }
        assert_eq!(kernel.rules().count(), 0);
    }

    #[test]
    fn what_a_killed_probe_left_is_taken_away() {
        let mut kernel = kernel();
        kernel.ensure_hook(driver().hook()).unwrap();
        let rule = driver().rule(Ability::Trap).unwrap();
        let left = kernel.apply(&[Op::Add { rule, handle: Handle(9) }], Mode::Told);
        assert!(left[0].is_done());
        probe(&mut kernel, &driver()).unwrap();
        assert_eq!(kernel.rules().count(), 0);
    }
}
