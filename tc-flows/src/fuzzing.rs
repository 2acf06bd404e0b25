//! What a fuzzer tries with the decoder and with the handling of answers: a panic is a finding.
//!
//! In come any bytes. Nothing comes out: what must hold is asserted here, so that the targets in
//! tests/fuzz and the test on their committed inputs are one.

use crate::diff::Op;
use crate::ident::{ChainId, Handle, Hook, Ifindex, Mac, Prio};
use crate::kernel::{Mode, Outcome, RuleLocation};
use crate::key::Match;
use crate::netlink::outcomes_of;
use crate::rule::{Owner, Rule};
use crate::wire::{Ask, Detail, Filter, Messages, Writer, rule_in};
use crate::{Action, encode};

const OWNER: Owner = Owner(*b"fuzz");

const HOOK: Hook = match Ifindex::new(7) {
    Some(ifindex) => Hook::ingress(ifindex),
    None => panic!("7 is an index"),
};

const PRIO: Prio = match Prio::new(10) {
    Some(prio) => prio,
    None => panic!("10 is a prio"),
};

/// The bytes as a datagram of the kernel's: whatever is asked of its messages has an answer.
pub fn datagram(bytes: &[u8]) {
    for message in Messages::new(bytes) {
        message.read();
        if let Some(ack) = message.ack() {
            ack.message();
        }
        if let Some(echo) = message.echo() {
            echo.message();
        }
        message.dump_was_interrupted();
        message.change(OWNER);
        message.filter(OWNER, HOOK, Detail::Full);
        message.filter(OWNER, HOOK, Detail::Terse);
    }
}

/// The bytes as a protocol (two bytes, network order) and the options of a flower filter: where
/// they are a rule of ours, the rule is the same after it was written and read again, and prints.
pub fn options(bytes: &[u8]) {
    let Some((protocol, options)) = bytes.split_first_chunk() else { return };
    let protocol = u16::from_be_bytes(*protocol);
    let location = RuleLocation { hook: HOOK, chain: ChainId::ZERO, prio: PRIO, protocol };
    let Some(rule) = rule_in(options, &location) else { return };
    let _ = rule.to_string();
    let mut written = Vec::new();
    let op = Op::Add { rule: rule.clone(), handle: Handle(1) };
    Writer::new(&mut written).op(&op, OWNER, 1, Ask { ack: false, told: false });
    let again = Messages::new(&written).next().and_then(|m| m.filter(OWNER, HOOK, Detail::Full));
    match again {
        Some(Filter::Own(again)) => assert_eq!(again.rule, rule),
        other => panic!("{rule:?} reads as {other:?}"),
    }
}

/// The bytes as answers to four changes: the first byte says in which mode they were made and
/// whether anything was lost, the others are datagrams, each behind its length (two bytes, network
/// order). Each change has one outcome, and none succeeded that the kernel did not say so of.
pub fn replies(bytes: &[u8]) {
    const FIRST: u32 = u32::MAX - 1;
    let Some((how, mut rest)) = bytes.split_first() else { return };
    let mode = if how & 1 == 0 { Mode::Fast } else { Mode::Told };
    let lost = how & 2 != 0;
    let mut datagrams = Vec::new();
    while let Some((len, behind)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes(*len)).min(behind.len());
        let (datagram, behind) = behind.split_at(len);
        datagrams.push(datagram);
        rest = behind;
    }
    let ops = changes();
    let mut sent = Vec::new();
    encode(&ops, OWNER, mode, FIRST, &mut sent);
    let outcomes = outcomes_of(&ops, &sent, mode, FIRST, lost, &datagrams);
    assert_eq!(outcomes.len(), ops.len());
    let acknowledged = |at: usize| {
        let seq = FIRST.wrapping_add(at as u32);
        let messages = datagrams.iter().flat_map(|datagram| Messages::new(datagram));
        let mut acks = messages.filter(|message| message.seq == seq).filter_map(|m| m.ack());
        acks.any(|ack| ack.errno == 0 || matches!(ops[at], Op::Delete { .. }))
    };
    let last = ops.len() - 1;
    let finished = datagrams
        .iter()
        .flat_map(|datagram| Messages::new(datagram))
        .any(|message| message.seq == FIRST.wrapping_add(last as u32) && message.ack().is_some());
    for (at, outcome) in outcomes.iter().enumerate() {
        // Silence is a success only of the fast mode, when the last was answered and nothing lost.
        let silence = mode == Mode::Fast && !lost && finished;
        assert!(!outcome.is_done() || acknowledged(at) || silence, "{outcome:?} of {at}");
        assert!(mode == Mode::Told || !matches!(outcome, Outcome::Unknown) || !silence);
    }
}

/// Two additions, a replacement and a deletion.
fn changes() -> [Op; 4] {
    let rule = |last: u8| {
        let matching = Match::any().src(Mac([2, 0, 0, 0, 0, last]));
        match Rule::new(HOOK, ChainId::ZERO, PRIO, matching, [Action::Drop]) {
            Ok(rule) => rule,
            Err(error) => panic!("{error}"),
        }
    };
    [
        Op::Add { rule: rule(1), handle: Handle(1) },
        Op::Add { rule: rule(2), handle: Handle(2) },
        Op::Replace { rule: rule(3), handle: Handle(3) },
        Op::Delete { id: rule(4).id().clone(), handle: Handle(4) },
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arbitrary::rules;

    /// Every committed input of a target.
    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let folder = format!("{}/../tests/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let inputs: Vec<Vec<u8>> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
            .collect();
        assert!(!inputs.is_empty(), "{folder}");
        inputs
    }

    #[test]
    fn no_committed_input_breaks_a_target() {
        corpus("flows_datagram").iter().for_each(|bytes| datagram(bytes));
        corpus("flows_options").iter().for_each(|bytes| options(bytes));
        corpus("flows_replies").iter().for_each(|bytes| replies(bytes));
    }

    /// Seeds for the corpus, where `ESWITCHD_WRITE_SEEDS` names a folder for them: rules and
    /// answers as a kernel sends them. `cargo lab fuzz --grow` keeps of them what is worth it.
    #[test]
    fn seeds_pass_the_targets() {
        use crate::wire::test_reply::{ack, echo};
        use proptest::strategy::{Strategy, ValueTree};

        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let mut seeds: Vec<(&str, Vec<u8>)> = Vec::new();
        for _ in 0..300 {
            let rule = rules().new_tree(&mut runner).unwrap().current();
            let mut filter = Vec::new();
            let op = Op::Add { rule: rule.clone(), handle: Handle(1) };
            Writer::new(&mut filter).op(&op, OWNER, 1, Ask { ack: false, told: false });
            let options = crate::wire::options_of(&filter).unwrap();
            let protocol = rule.id().matching().protocol().to_be_bytes();
            seeds.push(("flows_options", [&protocol, options].concat()));
            seeds.push(("flows_datagram", filter));
        }
        let op = changes()[0].clone();
        let Op::Add { rule, .. } = &op else { panic!("{op:?}") };
        let answers: [&[Vec<u8>]; 3] = [
            &[ack(u32::MAX - 1, 17, Some("Filter already exists")), ack(1, 0, None)],
            &[echo(u32::MAX - 1, rule, true), ack(u32::MAX - 1, 0, None), ack(1, 2, None)],
            &[ack(u32::MAX, 0, Some("not in hardware")), ack(0, 22, None), ack(1, 0, None)],
        ];
        for how in 0..4 {
            for datagrams in answers {
                let mut bytes = vec![how];
                for datagram in datagrams {
                    bytes.extend((datagram.len() as u16).to_be_bytes());
                    bytes.extend(datagram);
                    seeds.push(("flows_datagram", datagram.clone()));
                }
                seeds.push(("flows_replies", bytes));
            }
        }
        for (at, (target, bytes)) in seeds.iter().enumerate() {
            match *target {
                "flows_options" => options(bytes),
                "flows_replies" => replies(bytes),
                _ => datagram(bytes),
            }
            if let Some(folder) = std::env::var_os("ESWITCHD_WRITE_SEEDS") {
                let folder = std::path::Path::new(&folder).join(target);
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(folder.join(format!("seed-{at}")), bytes).unwrap();
            }
        }
    }

    proptest! {
        #[test]
        fn the_options_of_every_rule_pass_the_target(rule in rules()) {
            let mut bytes = Vec::new();
            let op = Op::Add { rule: rule.clone(), handle: Handle(1) };
            Writer::new(&mut bytes).op(&op, OWNER, 1, Ask { ack: false, told: false });
            let options_ = crate::wire::options_of(&bytes).unwrap();
            let protocol = rule.id().matching().protocol().to_be_bytes();
            options(&[&protocol, options_].concat());
        }
    }
}
