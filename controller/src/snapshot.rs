//! Snapshots: what is stored as the API tells it, and back.
//!
//! In: the intent and who holds which address, or a snapshot that is valid by itself. Out: the one
//! from the other. Pure: nothing is stored or planned here.

use api::{
    error::InvalidField,
    resources::EswitchShape,
    snapshot::{FORMAT, HeldAddress, Saved, SavedEswitch, Snapshot},
    types::Id,
};

use crate::{
    intent::{Claims, EswitchOrder, Intent, OrderStage, Restoration, Stored, Table},
    plan::switchdev::MAX_NETWORK_NUMBER,
};

/// What there is, as a document. What the kernel has refused of an eswitch is no part of it.
pub fn snapshot(intent: &Intent, claims: &Claims) -> Snapshot {
    let held = claims.iter().filter(|(_, port)| intent.ports.contains_key(*port));
    Snapshot {
        format: FORMAT,
        revision: intent.revision,
        networks: saved(&intent.networks),
        ports: saved(&intent.ports),
        guests: saved(&intent.guests),
        eswitches: intent.eswitches.iter().filter_map(saved_eswitch).collect(),
        addresses: held
            .map(|((network, mac), port)| HeldAddress {
                network: network.clone(),
                mac: *mac,
                port: port.clone(),
            })
            .collect(),
    }
}

fn saved<Spec: Clone>(table: &Table<Spec>) -> Vec<Saved<Spec>> {
    let saved = |(id, stored): (&Id, &Stored<Spec>)| Saved {
        id: id.clone(),
        created: stored.created,
        number: stored.number,
        spec: stored.spec.clone(),
    };
    table.iter().map(saved).collect()
}

fn saved_eswitch((id, stored): (&Id, &Stored<EswitchOrder>)) -> Option<SavedEswitch> {
    let EswitchOrder { wanted, stage, .. } = &stored.spec;
    matches!(stage, OrderStage::Forward | OrderStage::Settled).then(|| SavedEswitch {
        adapter: id.clone(),
        mode: wanted.mode,
        num_vfs: wanted.num_vfs,
    })
}

/// What a document says.
///
/// # Errors
/// A network's number is beyond what this daemon has chains for.
pub fn restoration(snapshot: Snapshot) -> Result<Restoration, InvalidField> {
    let beyond = |network: &Saved<_>| network.number > MAX_NETWORK_NUMBER;
    if let Some(index) = snapshot.networks.iter().position(beyond) {
        return Err(InvalidField {
            field: format!("networks[{index}].number"),
            detail: format!("{} is beyond the last", snapshot.networks[index].number),
            remedy: format!("use 1 to {MAX_NETWORK_NUMBER}"),
        });
    }
    let claims = snapshot.addresses.into_iter().map(|held| ((held.network, held.mac), held.port));
    Ok(Restoration {
        intent: Intent {
            revision: snapshot.revision,
            networks: stored(snapshot.networks),
            ports: stored(snapshot.ports),
            guests: stored(snapshot.guests),
            eswitches: snapshot.eswitches.into_iter().zip(1..).map(eswitch).collect(),
        },
        claims: claims.collect(),
    })
}

fn stored<Spec>(saved: Vec<Saved<Spec>>) -> Table<Spec> {
    let stored = |Saved { id, created, number, spec }| {
        (id, Stored { created, revision: created, number, spec })
    };
    saved.into_iter().map(stored).collect()
}

/// An eswitch that is brought where it was asked to be as one is that somebody else has changed:
/// while nobody uses its VFs.
fn eswitch((saved, number): (SavedEswitch, u32)) -> (Id, Stored<EswitchOrder>) {
    let wanted = EswitchShape { mode: saved.mode, num_vfs: saved.num_vfs };
    let spec = EswitchOrder { wanted, before: wanted, stage: OrderStage::Settled };
    (saved.adapter, Stored { created: 1, revision: 1, number, spec })
}

#[cfg(test)]
mod tests {
    use api::resources::{EswitchMode, NetworkKind, NetworkSpec, PortSpec};
    use serde_json::json;

    use super::*;
    use crate::intent::{Change, Effect};

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    fn network(kind: NetworkKind) -> Option<NetworkSpec> {
        let unknown_unicast = Default::default();
        Some(NetworkSpec {
            kind,
            adapter: None,
            reserved_macs: Vec::new(),
            unknown_unicast,
            multicast: Default::default(),
            labels: Default::default(),
        })
    }

    fn order(num_vfs: u16, stage: OrderStage) -> EswitchOrder {
        let wanted = EswitchShape { mode: EswitchMode::Switchdev, num_vfs };
        EswitchOrder { wanted, before: EswitchShape { num_vfs: 0, ..wanted }, stage }
    }

    /// Two networks, a port that holds an address, and an eswitch that was asked for two VFs.
    fn there() -> (Intent, Claims) {
        let mut intent = Intent::default();
        let port: PortSpec = serde_json::from_value(json!({
            "function": {"vf": {"adapter": "nic", "index": 0}},
            "attachments": [{"network": "blue"}],
        }))
        .unwrap();
        for change in [
            Change::Network(id("red"), network(NetworkKind::Flat)),
            Change::Network(id("blue"), network(NetworkKind::Isolated)),
            Change::Port(id("p"), Some(port)),
        ] {
            assert_eq!(intent.apply(change), Effect::Created);
        }
        intent.apply(Change::Eswitch(id("nic"), Some(order(2, OrderStage::Settled))));
        let mac = "02:00:00:00:00:01".parse().unwrap();
        (intent, [((id("blue"), mac), id("p"))].into_iter().collect())
    }

    fn restore(intent: &mut Intent, snapshot: &Snapshot) -> Effect {
        let restoration = restoration(snapshot.clone()).unwrap();
        intent.apply(Change::Everything(Box::new(restoration)))
    }

    #[test]
    fn the_snapshot_of_what_is_there_changes_nothing() {
        let (mut intent, claims) = there();
        let before = intent.clone();
        let snapshot = snapshot(&intent, &claims);
        assert_eq!(restoration(snapshot.clone()).unwrap().claims, claims);
        assert_eq!(restore(&mut intent, &snapshot), Effect::Unchanged);
        assert_eq!(intent, before);
    }

    #[test]
    fn what_is_restored_is_what_was_saved_and_its_revisions_are_higher_than_any_before() {
        let (saved, claims) = there();
        let snapshot = snapshot(&saved, &claims);
        let mut intent = saved.clone();
        intent.apply(Change::Network(id("red"), network(NetworkKind::Isolated)));
        intent.apply(Change::Port(id("p"), None));
        intent.apply(Change::Network(id("green"), network(NetworkKind::Flat)));
        let before = intent.revision;
        assert_eq!(restore(&mut intent, &snapshot), Effect::Updated);
        assert_eq!(intent.revision, before + 1);
        assert!(!intent.networks.contains_key(&id("green")));
        for (name, was) in &saved.networks {
            let now = &intent.networks[name];
            assert_eq!((now.created, now.number, &now.spec), (was.created, was.number, &was.spec));
        }
        assert_eq!(intent.networks[&id("red")].revision, before + 1, "it was another one");
        assert_eq!(intent.networks[&id("blue")].revision, 2, "it was the same all the time");
        assert_eq!(intent.ports[&id("p")].revision, before + 1, "it was gone");
    }

    #[test]
    fn an_eswitch_is_asked_for_what_was_saved_and_steps_that_are_under_way_go_on() {
        use OrderStage::{Forward, Settled};
        let why = "the kernel's words".to_owned();
        let given_up = OrderStage::GivenUp { why: why.clone() };
        let back = OrderStage::Back { why };
        for (was, now, then) in [
            (Some(order(2, Settled)), Some(order(3, Settled)), Some((2, Settled))),
            (Some(order(2, Settled)), Some(order(3, given_up.clone())), Some((2, Settled))),
            (Some(order(2, Settled)), Some(order(3, Forward)), Some((3, Forward))),
            (Some(order(2, Settled)), Some(order(3, back.clone())), Some((3, back.clone()))),
            (Some(order(2, Settled)), None, Some((2, Settled))),
            (Some(order(2, Forward)), None, Some((2, Settled))),
            (Some(order(2, back)), None, None),
            (Some(order(2, given_up)), Some(order(3, Settled)), None),
            (None, Some(order(3, Settled)), None),
            (None, Some(order(3, Forward)), Some((3, Forward))),
        ] {
            let (mut saved, mut intent) = (Intent::default(), Intent::default());
            saved.apply(Change::Eswitch(id("nic"), was.clone()));
            intent.apply(Change::Eswitch(id("nic"), now.clone()));
            restore(&mut intent, &snapshot(&saved, &Claims::default()));
            let found = intent.eswitches.get(&id("nic")).map(|stored| &stored.spec);
            let found = found.map(|order| (order.wanted.num_vfs, order.stage.clone()));
            assert_eq!(found, then, "{was:?} over {now:?}");
        }
    }

    #[test]
    fn on_a_host_with_fewer_changes_the_revision_goes_beyond_the_snapshots() {
        let (saved, claims) = there();
        let mut intent = Intent::default();
        assert_eq!(restore(&mut intent, &snapshot(&saved, &claims)), Effect::Updated);
        assert_eq!(intent.revision, saved.revision + 1);
        intent.apply(Change::Network(id("blue"), None));
        assert_eq!(intent.revision, saved.revision + 2);
    }

    #[test]
    fn a_number_that_no_chain_belongs_to_is_named() {
        let (intent, claims) = there();
        let mut snapshot = snapshot(&intent, &claims);
        snapshot.networks[1].number = MAX_NETWORK_NUMBER + 1;
        assert_eq!(restoration(snapshot).unwrap_err().field, "networks[1].number");
    }
}
