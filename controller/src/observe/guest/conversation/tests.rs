//! Conversations with a recorded QEMU and with a model of one, under a clock of the test's own.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::{
    eswitch::vdpa::VdpaConfig,
    observe::guest::{double::Qemu, lines::Lines},
    world::BackingView,
};
use api::types::MacAddr;

/// Every function on the same backing, so that all are shown.
fn functions(conversation: &Conversation) -> BTreeMap<String, GuestFunction> {
    let unknown = || BackingView::Unknown { reason: String::new() }.into();
    let backends = conversation.backends();
    conversation.functions(&backends.into_keys().map(|id| (id, unknown())).collect())
}

/// The requests in `bytes`.
fn requests(bytes: &mut Vec<u8>) -> Vec<String> {
    let text = String::from_utf8(std::mem::take(bytes)).unwrap();
    text.lines().map(str::to_owned).collect()
}

// ---------------------------------------------------------------- a recorded QEMU

/// One guest's life, moment by moment.
struct Recording {
    moments: std::vec::IntoIter<Value>,
    answers: BTreeMap<String, String>,
}

impl Recording {
    fn life() -> Self {
        let lines = include_str!("../testdata/life.jsonl").lines();
        let moments: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        Recording { moments: moments.into_iter(), answers: BTreeMap::new() }
    }

    fn answer(&self, request: &str) -> String {
        let request: Value = serde_json::from_str(request).unwrap();
        let arguments = &request["arguments"];
        let mut command = request["execute"].as_str().unwrap().to_owned();
        if let Some(name) = arguments["name"].as_str() {
            command = format!("{command} {name}");
        }
        if let Some(path) = arguments["path"].as_str() {
            let device = path.rsplit('/').next().unwrap();
            command = format!("{command} {device} {}", arguments["property"].as_str().unwrap());
        }
        let id = &request["id"];
        if command == "qmp_capabilities" {
            return format!("{{\"return\": {{}}, \"id\": {id}}}");
        }
        let recorded =
            self.answers.get(&command).unwrap_or_else(|| panic!("never asked: {command}"));
        let without_id = recorded.strip_suffix("\"id\": 1}").expect("an answer to request 1");
        format!("{without_id}\"id\": {id}}}")
    }

    /// Goes on to the next moment: what was heard, and then whatever is asked, until nothing is.
    fn play(&mut self, conversation: &mut Conversation, now: &mut Instant) -> String {
        let moment = self.moments.next().expect("another moment");
        for (command, answer) in moment["answers"].as_object().unwrap() {
            self.answers.insert(command.clone(), answer.as_str().unwrap().to_owned());
        }
        for line in moment["heard"].as_array().unwrap() {
            conversation.hear(line.as_str().unwrap().as_bytes(), *now).unwrap();
        }
        let end = *now + Duration::from_millis(1500);
        let mut bytes = Vec::new();
        while *now < end {
            conversation.ask(*now, &mut bytes);
            for request in requests(&mut bytes) {
                conversation.hear(self.answer(&request).as_bytes(), *now).unwrap();
            }
            *now += Duration::from_millis(10);
        }
        moment["moment"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_recorded_life_of_a_guest_is_seen_as_it_was() {
    let mut now = Instant::now();
    let mut recording = Recording::life();
    let mut conversation = Conversation::new(Limits::default(), now);
    let mut next = |conversation: &mut Conversation| recording.play(conversation, &mut now);
    let mac_and_vlans = |function: &GuestFunction| {
        let filter = function.filter.clone().expect("a filter");
        (filter.main_mac.to_string(), filter.vlans, filter.promiscuous)
    };
    let own = "52:54:00:0a:00:01".to_owned();
    let other = "02:aa:bb:cc:00:01".to_owned();

    assert_eq!(next(&mut conversation), "booted");
    assert!(conversation.is_inventoried());
    assert_eq!(conversation.qemu(), Some("11.1.3"));
    assert_eq!(conversation.run_state(), Some("running"));
    let seen = functions(&conversation);
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["pf0", "vf0", "vf1", "vf2", "vf3"]);
    assert!(seen["pf0"].enabled && seen["pf0"].pf.is_none());
    assert!(seen.iter().all(|(id, f)| id == "pf0" || f.pf.as_deref() == Some("pf0")));
    assert!(!seen["vf0"].enabled && seen["vf0"].filter.is_none());
    let indexes = seen.values().map(|function| function.index).collect::<Vec<_>>();
    assert_eq!(indexes, [None, Some(0), Some(1), Some(2), Some(3)]);
    assert_eq!(seen["vf2"].pci.unwrap().to_string(), "01:00.3");
    assert_eq!(seen["vf0"].visibility, Visibility::default());
    let backends = conversation.backends();
    assert_eq!(backends[&DeviceId::new("vf0").unwrap()].as_deref(), Some("n1"));

    assert_eq!(next(&mut conversation), "two VFs, driver bound");
    let seen = functions(&conversation);
    assert!(seen["vf0"].enabled && seen["vf1"].enabled && !seen["vf2"].enabled);
    assert_eq!(mac_and_vlans(&seen["vf0"]), (own.clone(), vec![], true));

    assert_eq!(next(&mut conversation), "link up");
    let vf0 = functions(&conversation).remove("vf0").unwrap();
    assert_eq!(mac_and_vlans(&vf0), (own, vec![0], false));
    assert_eq!(vf0.visibility.rx_mode, RxMode::Negotiated);
    assert_eq!(vf0.visibility.mac, MacSource::RxFilter);
    let groups = vf0.filter.unwrap().multicast;
    assert!(groups.contains(&"33:33:00:00:00:01".parse().unwrap()), "{groups:?}");

    assert_eq!(next(&mut conversation), "another MAC");
    assert_eq!(mac_and_vlans(&functions(&conversation)["vf0"]), (other.clone(), vec![0], false));

    assert_eq!(next(&mut conversation), "VLAN 100");
    let with_vlan = (other, vec![0, 100], false);
    assert_eq!(mac_and_vlans(&functions(&conversation)["vf0"]), with_vlan);

    assert_eq!(next(&mut conversation), "macvlan");
    let unicast = |conversation: &Conversation| {
        let filter = functions(conversation)["vf0"].filter.clone().expect("a filter");
        let macs: Vec<String> = filter.unicast.iter().map(ToString::to_string).collect();
        (macs, filter.unicast_overflow)
    };
    assert_eq!(unicast(&conversation), (vec!["02:aa:bb:cc:00:02".to_owned()], false));

    assert_eq!(next(&mut conversation), "71 macvlans");
    assert_eq!(unicast(&conversation), (vec![], true));

    assert_eq!(next(&mut conversation), "no macvlans");
    assert_eq!(unicast(&conversation), (vec![], false));

    assert_eq!(next(&mut conversation), "paused");
    assert_eq!(conversation.run_state(), Some("paused"));
    assert_eq!(mac_and_vlans(&functions(&conversation)["vf0"]), with_vlan);

    assert_eq!(next(&mut conversation), "resumed");
    assert_eq!(conversation.run_state(), Some("running"));

    assert_eq!(next(&mut conversation), "driver unbound");
    let seen = functions(&conversation);
    assert!(seen["vf0"].enabled && seen["vf0"].filter.is_none());

    assert_eq!(next(&mut conversation), "driver bound");
    assert!(functions(&conversation)["vf0"].filter.is_some(), "QEMU sends no event for this");

    assert_eq!(next(&mut conversation), "no VFs");
    let seen = functions(&conversation);
    assert!(!seen["vf0"].enabled && seen["vf0"].filter.is_none());
    let counts = conversation.take_counts();
    assert!(counts["NIC_RX_FILTER_CHANGED"] >= 7 && counts["RESUME"] >= 1, "{counts:?}");
    assert_eq!(counts["STOP"], 1);
}

#[test]
fn what_a_real_qemu_says_is_read_the_same_however_it_is_cut() {
    let mut lines = Vec::new();
    for line in include_str!("../testdata/life.jsonl").lines() {
        let moment: Value = serde_json::from_str(line).unwrap();
        let heard = moment["heard"].as_array().unwrap().iter();
        lines.extend(heard.chain(moment["answers"].as_object().unwrap().values()).cloned());
    }
    let lines: Vec<&str> = lines.iter().map(|line| line.as_str().unwrap()).collect();
    let limit = Limits::default().line;
    let mut read = Lines::new(limit);
    let mut next = |bytes: &[u8]| {
        read.room().extend_from_slice(bytes);
        let mut got = Vec::new();
        while let Some(line) = read.next_line().unwrap() {
            assert!(qmp::decode(line).is_ok());
            got.push(line.to_vec());
        }
        got
    };
    for line in &lines {
        let bytes = [line.as_bytes(), b"\r\n"].concat();
        // In two at every place; of a long line at its ends and now and then between.
        let (length, ends) = (bytes.len(), 200);
        let cuts = (0..=length).filter(|cut| {
            *cut < ends || *cut + ends > length || cut.is_multiple_of(length / 50 + 1)
        });
        for cut in cuts {
            let (first, rest) = bytes.split_at(cut);
            let got = [next(first), next(rest)].concat();
            assert_eq!(got, [line.as_bytes()], "cut at {cut}");
        }
    }
    // All of it in pieces of each size, so that pieces hold several lines and parts of lines.
    let stream: Vec<u8> =
        lines.iter().flat_map(|line| [line.as_bytes(), b"\r\n"].concat()).collect();
    for size in [1, 2, 3, 7, 64, 1000, 4096, 65_536] {
        let got: Vec<Vec<u8>> = stream.chunks(size).flat_map(&mut next).collect();
        assert!(got.iter().map(Vec::as_slice).eq(lines.iter().map(|line| line.as_bytes())));
    }
}

#[test]
fn where_the_control_queue_is_hidden_the_address_is_the_one_the_device_was_given() {
    let given = MacAddr([2, 0xaa, 0, 0, 0, 9]);
    let shown = RxFilter {
        main_mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
        unicast: Vec::new(),
        unicast_overflow: false,
        multicast: Vec::new(),
        multicast_overflow: false,
        all_multicast: false,
        vlans: Vec::new(),
        promiscuous: true,
    };
    let of = |control_queue, negotiated| {
        let config = VdpaConfig { mac: Some(given), negotiated, ..VdpaConfig::default() };
        let backing = BackingView::Vf { handle: "pci/0000:03:00.0".into(), index: 1 };
        let footing = Footing { control_queue, config: Some(config), ..Footing::from(backing) };
        let (filter, visibility) = seen(&footing, Some(&shown));
        (filter.unwrap().main_mac, visibility.mac, visibility.rx_mode)
    };
    assert_eq!(of(ControlQueue::Hidden, None), (given, MacSource::VdpaConfig, RxMode::Unknown));
    assert_eq!(
        of(ControlQueue::Hidden, Some(0)),
        (given, MacSource::VdpaConfig, RxMode::NotNegotiated)
    );
    assert_eq!(
        of(ControlQueue::Seen, Some(1 << 18)),
        (shown.main_mac, MacSource::RxFilter, RxMode::Negotiated)
    );
    let footing = Footing::from(BackingView::Unknown { reason: String::new() });
    assert_eq!(seen(&footing, None), (None, Visibility::default()));
}

// ---------------------------------------------------------------- a model of QEMU

/// A conversation with the model, every byte of which the test delivers when it likes.
struct Exchange {
    qemu: Qemu,
    conversation: Conversation,
    now: Instant,
    /// Asked, and not read by the model yet.
    asked: VecDeque<String>,
    /// Said by the model, and not heard yet.
    said: VecDeque<String>,
}

impl Exchange {
    fn new() -> Self {
        let now = Instant::now();
        Exchange {
            qemu: Qemu::booted(),
            conversation: Conversation::new(Limits::default(), now),
            now,
            asked: VecDeque::new(),
            said: [Qemu::greeting()].into(),
        }
    }

    fn ask(&mut self) {
        let mut bytes = Vec::new();
        self.conversation.ask(self.now, &mut bytes);
        self.asked.extend(requests(&mut bytes));
    }

    fn answer(&mut self) -> bool {
        let request = self.asked.pop_front();
        self.said.extend(request.iter().map(|request| self.qemu.answer(request)));
        request.is_some()
    }

    fn hear(&mut self) -> bool {
        let line = self.said.pop_front();
        if let Some(line) = &line {
            self.conversation.hear(line.as_bytes(), self.now).unwrap();
        }
        self.ask();
        line.is_some()
    }

    fn change(&mut self, vf: &str, change: impl FnOnce(&mut crate::observe::guest::double::Nic)) {
        let event = self.qemu.change(vf, change);
        self.said.extend(event);
    }

    /// Time passes, and everything that is under way arrives.
    fn settle(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.ask();
            while self.answer() || self.hear() {}
            if self.now >= end {
                return;
            }
            self.now += Duration::from_millis(5);
        }
    }
}

#[test]
fn nothing_is_asked_before_the_greeting_and_only_negotiation_before_it_is_over() {
    let mut exchange = Exchange::new();
    exchange.ask();
    assert!(exchange.asked.is_empty());
    exchange.hear();
    assert_eq!(exchange.asked.len(), 1);
    assert!(exchange.asked[0].contains("qmp_capabilities"));
    exchange.now += Duration::from_secs(5);
    exchange.ask();
    assert_eq!(exchange.asked.len(), 1, "asked once");
}

#[test]
fn an_event_is_answered_by_one_question_for_that_function_before_any_other() {
    let mut exchange = Exchange::new();
    exchange.settle(Duration::from_millis(500));
    exchange.change("vf1", |nic| nic.driver = true);
    exchange.hear();
    assert!(exchange.asked[0].contains("query-rx-filter") && exchange.asked[0].contains("vf1"));
    let read = exchange.now;
    exchange.now += Duration::from_millis(1);
    exchange.answer();
    exchange.hear();
    let cause = exchange.conversation.take_change().expect("a change after one answer");
    assert_eq!(cause.event_read, Some(read));
    assert!(functions(&exchange.conversation)["vf1"].filter.is_some());
}

#[test]
fn an_event_while_a_question_is_out_leads_to_another_question() {
    let mut exchange = Exchange::new();
    exchange.settle(Duration::from_millis(500));
    exchange.change("vf0", |nic| nic.driver = true);
    exchange.hear();
    // The model answers the first question, and the guest changes again before that is heard.
    exchange.answer();
    exchange.change("vf0", |nic| nic.mac = "02:00:00:00:00:77".into());
    exchange.settle(Duration::from_millis(50));
    let filter = functions(&exchange.conversation)["vf0"].filter.clone().unwrap();
    assert_eq!(filter.main_mac.to_string(), "02:00:00:00:00:77");
}

#[test]
fn a_quiet_guest_is_asked_only_what_the_slow_poll_asks() {
    let mut exchange = Exchange::new();
    exchange.settle(Duration::from_secs(2));
    exchange.qemu.asked.clear();
    exchange.settle(Duration::from_secs(20));
    let asked = |command: &str| exchange.qemu.asked.get(command).copied().unwrap_or(0);
    assert!((14..=18).contains(&asked("query-pci")), "{:?}", exchange.qemu.asked);
    // pf0 alone is enabled.
    assert!((14..=18).contains(&asked("query-rx-filter")), "{:?}", exchange.qemu.asked);
    assert!(exchange.conversation.next_ask().is_some());
}

#[test]
fn a_reset_without_an_event_is_seen_with_the_next_look_of_a_guest_that_was_quiet_for_long() {
    let mut exchange = Exchange::new();
    for vf in ["vf0", "vf1"] {
        let nic = exchange.qemu.nics.get_mut(vf).unwrap();
        (nic.enabled, nic.driver) = (true, true);
    }
    exchange.settle(Duration::from_secs(30));
    for driver in [false, true] {
        // QEMU says nothing of this: a function-level reset, and the driver's return.
        exchange.qemu.nics.get_mut("vf1").unwrap().driver = driver;
        exchange.settle(Duration::from_millis(1400));
        let vf1 = functions(&exchange.conversation).remove("vf1").unwrap();
        assert!(vf1.enabled && vf1.filter.is_some() == driver, "{vf1:?}");
    }
}

#[test]
fn a_guest_that_stood_still_to_leave_is_asked_until_it_has_left() {
    let mut exchange = Exchange::new();
    exchange.settle(Duration::from_secs(30));
    exchange.qemu.run_state = "finish-migrate";
    exchange.said.push_back(r#"{"event": "STOP", "data": {}}"#.into());
    exchange.settle(Duration::from_millis(300));
    assert_eq!(exchange.conversation.run_state(), Some("finish-migrate"));
    // QEMU says nothing of this.
    exchange.qemu.run_state = "postmigrate";
    exchange.settle(Duration::from_millis(1400));
    assert_eq!(exchange.conversation.run_state(), Some("postmigrate"));
}

#[test]
fn a_guest_with_many_functions_is_looked_at_all_round_and_never_at_all_at_once() {
    let mut exchange = Exchange::new();
    exchange.qemu.with_vfs(30);
    exchange.settle(Duration::from_secs(15));
    exchange.qemu.asked.clear();
    exchange.settle(Duration::from_secs(10));
    let asked = exchange.qemu.asked["query-rx-filter"];
    assert!((48..=80).contains(&asked), "eight a poll, and the list of all: {asked}");
    exchange.qemu.nics.get_mut("vf29").unwrap().driver = false;
    exchange.settle(Duration::from_millis(6000));
    assert!(functions(&exchange.conversation)["vf29"].filter.is_none());
}

#[test]
fn a_driver_that_says_something_before_it_goes_is_looked_at_again_when_it_has_gone() {
    let mut exchange = Exchange::new();
    exchange.settle(Duration::from_millis(300));
    exchange.change("vf0", |nic| (nic.enabled, nic.driver) = (true, true));
    exchange.settle(Duration::from_millis(150));
    exchange.change("vf0", |nic| nic.mac = "02:00:00:00:00:77".into());
    exchange.settle(Duration::from_millis(5));
    exchange.qemu.nics.get_mut("vf0").unwrap().driver = false;
    exchange.settle(Duration::from_millis(150));
    assert!(functions(&exchange.conversation)["vf0"].filter.is_none());
}

#[test]
fn a_flood_below_the_bound_on_messages_costs_a_bounded_number_of_questions() {
    let mut exchange = Exchange::new();
    exchange.settle(Duration::from_secs(1));
    exchange.qemu.asked.clear();
    for _ in 0..5000 {
        // Two events every millisecond of five seconds, each as if the filter had been armed.
        exchange.said.push_back(Qemu::filter_changed("vf0"));
        exchange.said.push_back(r#"{"event": "RESET", "data": {}}"#.into());
        exchange.now += Duration::from_millis(1);
        while exchange.answer() || exchange.hear() {}
    }
    let asked = |command: &str| exchange.qemu.asked.get(command).copied().unwrap_or(0);
    // A function 64 times and 200 times a second, all of them and the rest every 50 ms, and the
    // poll of pf0.
    assert!(asked("query-rx-filter") <= 64 + 1000 + 101 + 6, "{:?}", exchange.qemu.asked);
    assert!(asked("query-pci") <= 101 && asked("query-status") <= 101);
    assert!(asked("query-rx-filter") >= 1000, "and no fewer than that");
}

#[test]
fn a_busy_function_delays_no_other_of_its_guest() {
    let mut exchange = Exchange::new();
    exchange.settle(Duration::from_secs(1));
    for _ in 0..500 {
        exchange.said.push_back(Qemu::filter_changed("vf0"));
        exchange.now += Duration::from_millis(2);
        while exchange.answer() || exchange.hear() {}
    }
    exchange.change("vf1", |nic| nic.driver = true);
    exchange.said.push_back(Qemu::filter_changed("vf0"));
    exchange.settle(Duration::from_millis(1));
    assert!(functions(&exchange.conversation)["vf1"].filter.is_some());
}

#[test]
fn more_messages_than_a_guest_may_send_are_an_offence() {
    let mut exchange = Exchange::new();
    exchange.settle(Duration::from_secs(1));
    let event = Qemu::filter_changed("vf0");
    let heard = (0..10_000)
        .take_while(|_| exchange.conversation.hear(event.as_bytes(), exchange.now).is_ok())
        .count();
    assert!((3000..=4000).contains(&heard), "{heard}");
}

/// Something that happens between the guest, the model and the conversation.
#[derive(Debug, Clone)]
enum Step {
    Mac(&'static str, u8),
    Driver(&'static str, bool),
    Enabled(&'static str, bool),
    Unplug(&'static str),
    Unrelated,
    Answer,
    Hear,
    Time(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let device = || prop_oneof![Just("pf0"), Just("vf0"), Just("vf1")];
    prop_oneof![
        3 => (device(), any::<u8>()).prop_map(|(device, last)| Step::Mac(device, last)),
        1 => (device(), any::<bool>()).prop_map(|(device, on)| Step::Driver(device, on)),
        1 => (device(), any::<bool>()).prop_map(|(device, on)| Step::Enabled(device, on)),
        1 => device().prop_map(Step::Unplug),
        1 => Just(Step::Unrelated),
        8 => Just(Step::Answer),
        8 => Just(Step::Hear),
        3 => (0u64..40).prop_map(Step::Time),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_in_whatever_order_the_end_is_what_is(
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut exchange = Exchange::new();
        for step in steps {
            match step {
                Step::Mac(id, _) | Step::Driver(id, _) | Step::Enabled(id, _)
                    if !exchange.qemu.nics.contains_key(id) => {}
                Step::Mac(id, last) => {
                    exchange.change(id, |nic| nic.mac = format!("02:00:00:00:00:{last:02x}"));
                }
                Step::Driver(id, on) => exchange.change(id, |nic| nic.driver = on),
                Step::Enabled(id, on) => {
                    // QEMU says nothing of this.
                    exchange.qemu.nics.get_mut(id).unwrap().enabled = on;
                }
                Step::Unplug(id) => {
                    if exchange.qemu.nics.remove(id).is_some() {
                        let data = format!("{{\"device\": \"{id}\", \"path\": \"/x\"}}");
                        let line = format!("{{\"event\": \"DEVICE_DELETED\", \"data\": {data}}}");
                        exchange.said.push_back(line);
                    }
                }
                Step::Unrelated => exchange.said.push_back("{\"event\": \"RTC_CHANGE\"}".into()),
                Step::Answer => { exchange.answer(); }
                Step::Hear => { exchange.hear(); }
                Step::Time(ms) => {
                    exchange.now += Duration::from_millis(ms);
                    exchange.ask();
                }
            }
        }
        exchange.settle(Duration::from_millis(2500));
        let seen = functions(&exchange.conversation);
        prop_assert!(seen.keys().map(String::as_str).eq(exchange.qemu.nics.keys().copied()));
        for (id, nic) in &exchange.qemu.nics {
            let function = &seen[*id];
            prop_assert_eq!(function.enabled, nic.enabled);
            let mac = function.filter.as_ref().map(|filter| filter.main_mac.to_string());
            // What is neither enabled nor announced is looked at with the audit, not before.
            if nic.enabled || mac.is_some() {
                prop_assert_eq!(mac, nic.driver.then(|| nic.mac.clone()));
            }
        }
    }

    #[test]
    fn no_line_makes_a_conversation_panic(
        lines in proptest::collection::vec("[\\[\\]{}\":,a-z0-9 -]{0,80}", 0..20),
        cut in 0usize..400,
    ) {
        let mut exchange = Exchange::new();
        exchange.settle(Duration::from_millis(100));
        exchange.change("vf0", |nic| nic.driver = true);
        let mut all: Vec<String> = exchange.said.drain(..).collect();
        let request = "{\"execute\": \"query-rx-filter\", \"id\": 9}";
        let mut answer = exchange.qemu.answer(request);
        answer.truncate(cut);
        all.push(answer);
        all.extend(lines);
        for line in all {
            if exchange.conversation.hear(line.as_bytes(), exchange.now).is_err() {
                break;
            }
            exchange.ask();
        }
    }
}
