//! The live page in a real browser: it shows the switch and what changes, is worked with mouse or
//! keys, can be read in light and dark, and asks nobody but the daemon for anything.
//!
//! In: the real daemon behind TCP and a token, with a software adapter and a guest's double, and the
//! browser that `cargo lab test` puts into the cache. Where the kernel has no flower the port is not
//! programmed, and the page has to say so.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use lab::{
    browser::{Browser, Key},
    daemon::Daemon,
    net::{self, Netns},
    qmp_double::Double,
};
use serde_json::{Value, json};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// The token by its SHA-256: all that the page does is reading.
const TOKEN_LINE: &str =
    "page read sha256:3eb1bd439947eb762998e566ccc2e099c791118b2f40579cc4f7da2b5061b7f9\n";

const ORIGIN: &str = "http://127.0.0.1:8080";

/// The script that measures contrast.
const CONTRAST: &str = include_str!("page.js");

struct Host {
    daemon: Daemon,
    _guest: Double,
    _netns: Netns,
    _folder: tempfile::TempDir,
}

/// A daemon with the port `b` on the tap of a software adapter, and the port `a` on a VF of the
/// guest `web` that stands nowhere.
fn host() -> Host {
    let netns = Netns::enter().unwrap();
    net::ip("tuntap add dev tap-b mode tap").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, TOKEN_LINE).unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    let configuration = format!(
        "tcp = [\"127.0.0.1:8080\"]\ntokens = \"{}\"\n\n[[adapter]]\nsoftware = \"lab\"\n\
         representors = [\"tap-*\"]\n",
        tokens.display()
    );
    let daemon = Daemon::start(&folder.path().join("eswitchd"), &configuration).unwrap();
    let guest = guest(&daemon.qmp_dir());
    daemon.put_pair(json!("flat"), "tap-b", ("web", "vf0")).unwrap();
    daemon.wait_for_condition("/v1/ports/b", "Bound", "True").unwrap();
    daemon.wait_for_condition("/v1/guests/web", "Connected", "True").unwrap();
    Host { daemon, _guest: guest, _netns: netns, _folder: folder }
}

fn guest(folder: &Path) -> Double {
    Double::listen(&folder.join("web.sock"), 2, 1).unwrap()
}

/// Opens the page and gives it the token that it asks for.
fn opened(browser: &mut Browser) {
    browser.open(&format!("{ORIGIN}/ui")).unwrap();
    browser.wait_for("!document.getElementById('ask').hidden").unwrap();
    browser.click("#token").unwrap();
    browser.write(TOKEN).unwrap();
    browser.press(Key::Enter).unwrap();
    browser.wait_for("document.getElementById('state').textContent === 'live'").unwrap();
    browser.wait_for("document.querySelectorAll('[data-port]').length === 2").unwrap();
}

fn text(browser: &mut Browser, selector: &str) -> String {
    let script = format!("document.querySelector({}).innerText", json!(selector));
    browser.evaluate(&script).unwrap().as_str().unwrap().to_owned()
}

/// What the browser complained of: exceptions, and what it writes to its console as an error.
fn complaints(browser: &mut Browser) -> Vec<String> {
    let mut complaints = browser.take("Runtime.exceptionThrown").unwrap();
    let mut console = browser.take("Runtime.consoleAPICalled").unwrap();
    console.retain(|call| ["error", "warning", "assert"].iter().any(|kind| call["type"] == *kind));
    let mut log = browser.take("Log.entryAdded").unwrap();
    log.retain(|entry| entry["entry"]["level"] == "error");
    complaints.extend(console.into_iter().chain(log));
    complaints.iter().map(Value::to_string).collect()
}

const FOCUSED: &str = "document.activeElement.dataset.port ?? ''";
const EXPLAINS: &str = "!document.getElementById('why').hidden";

#[test]
fn the_page_shows_adapters_ports_and_guests_and_what_becomes_of_them() {
    let host = host();
    let mut browser = Browser::start().unwrap();
    browser.open(&format!("{ORIGIN}/ui")).unwrap();
    // Who has no token is asked for one, and told nothing.
    browser.wait_for("document.getElementById('state').textContent.includes('401')").unwrap();
    assert!(!text(&mut browser, "body").contains("soft-lab"));
    let refused = complaints(&mut browser);
    assert!(refused.iter().all(|complaint| complaint.contains("401")), "{refused:#?}");
    opened(&mut browser);
    complaints(&mut browser);

    let adapter = text(&mut browser, "[aria-label='adapter soft-lab']");
    assert!(adapter.contains("soft-lab · software"), "{adapter}");
    assert!(adapter.contains("tap-b"), "{adapter}");
    let nowhere = text(&mut browser, "[aria-label='ports without a place']");
    assert!(nowhere.contains("guest web, vf0") && nowhere.contains("not bound"), "{nowhere}");
    let guests = text(&mut browser, "[aria-label='guests']");
    assert!(guests.contains("web") && guests.contains("1 of 2 VFs enabled"), "{guests}");
    let shades = "['a', 'b'].map(id => document.querySelector(`[data-port=${id}]`).className)";
    let shades = browser.evaluate(shades).unwrap();
    let programmed =
        lab::daemon::condition(&host.daemon.get("/v1/ports/b").unwrap(), "Programmed").clone();
    let b = if programmed["status"] == "True" { "good" } else { "bad" };
    assert_eq!(shades, json!(["none", b]), "{programmed}");

    // What ports send and receive comes with the events.
    browser
        .wait_for("document.querySelector('[data-port=b]').innerText.includes('bit/s')")
        .unwrap();

    // Nobody loads the page again.
    host.daemon.delete("/v1/ports/a").unwrap();
    browser.wait_for("!document.querySelector('[data-port=a]')").unwrap();
    let spec = json!({
        "function": {"guest_vf": {"guest": "web", "device": "vf1"}},
        "attachments": [{"network": "blue"}],
    });
    host.daemon.put("/v1/ports/c", spec).unwrap();
    browser.wait_for("!!document.querySelector('[data-port=c]')").unwrap();
    browser.wait_for("document.getElementById('news').innerText.includes('ports/c')").unwrap();
    assert_eq!(complaints(&mut browser), Vec::<String>::new());
}

#[test]
fn a_port_is_explained_to_a_click_and_to_the_keyboard_alike() {
    let _host = host();
    let mut browser = Browser::start().unwrap();
    opened(&mut browser);
    browser.click("[data-port=a]").unwrap();
    browser.wait_for(EXPLAINS).unwrap();
    browser.wait_for("document.querySelectorAll('#why li').length > 3").unwrap();
    let clicked = text(&mut browser, "#why");
    assert!(
        text(&mut browser, "#why li.failed").len() > 10,
        "what is broken stands out: {clicked}"
    );
    browser.click("#why button").unwrap();
    browser.wait_for(&format!("!({EXPLAINS})")).unwrap();

    browser.evaluate("document.activeElement.blur()").unwrap();
    let mut reached = Vec::new();
    while reached.len() < 10 && !reached.contains(&json!("a")) {
        browser.press(Key::Tab).unwrap();
        reached.push(browser.evaluate(FOCUSED).unwrap());
    }
    assert!(reached.contains(&json!("a")), "Tab never gets there: {reached:?}");
    let ring = "getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(browser.evaluate(ring).unwrap(), "solid", "where the focus is can be seen");
    browser.press(Key::Enter).unwrap();
    browser.wait_for(EXPLAINS).unwrap();
    browser.wait_for("document.querySelectorAll('#why li').length > 3").unwrap();
    assert_eq!(text(&mut browser, "#why"), clicked);
    let expanded = "document.querySelector('[data-port=a]').getAttribute('aria-expanded')";
    assert_eq!(browser.evaluate(expanded).unwrap(), "true");
    browser.press(Key::Escape).unwrap();
    browser.wait_for(&format!("!({EXPLAINS})")).unwrap();
    assert_eq!(browser.evaluate(expanded).unwrap(), "false");
    assert_eq!(browser.evaluate(FOCUSED).unwrap(), "a", "the focus is where it was");
}

#[test]
fn the_page_can_be_read_in_light_and_dark_and_on_a_narrow_screen() {
    let _host = host();
    let mut browser = Browser::start().unwrap();
    opened(&mut browser);
    browser.click("[data-port=a]").unwrap();
    browser.wait_for("document.querySelectorAll('#why li').length > 3").unwrap();
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).unwrap();
        let found = browser.evaluate(CONTRAST).unwrap();
        assert_eq!(found, json!({"faint": [], "dark": scheme == "dark"}), "{scheme}");
    }
    for width in [360, 1280] {
        browser.resize(width, 800).unwrap();
        let wide = browser.evaluate("document.documentElement.scrollWidth").unwrap();
        assert_eq!(wide, json!(width), "nothing is beside the screen");
    }
}

#[test]
fn nobody_but_the_daemon_is_asked_and_the_policy_holds_what_was_smuggled_in() {
    let _host = host();
    let mut browser = Browser::start().unwrap();
    opened(&mut browser);
    let asked = browser.take("Network.requestWillBeSent").unwrap();
    assert!(asked.len() > 4, "{asked:?}");
    for request in &asked {
        let url = request["request"]["url"].as_str().unwrap();
        assert!(url.starts_with(&format!("{ORIGIN}/")), "{url}");
        assert!(!url.contains("/metrics"), "a page costs a scrape");
    }

    let smuggled = r#"(async () => {
        const held = [];
        addEventListener("securitypolicyviolation", event => held.push(event.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        const picture = document.createElement("img");
        picture.src = "/healthz";
        const frame = document.createElement("iframe");
        frame.src = "/ui";
        const card = document.createElement("div");
        card.innerHTML = "<p style='color: red' onclick='window.ran = true'>x</p>";
        document.body.append(script, picture, frame, card);
        card.firstChild.click();
        const other = await fetch("http://localhost:8080/healthz").then(() => "sent", () => "held");
        await new Promise(then => setTimeout(then, 200));
        return { ran: !!window.ran, other, held: [...new Set(held)].sort() };
    })()"#;
    let found = browser.evaluate(smuggled).unwrap();
    let held = [
        "connect-src",
        "frame-src",
        "img-src",
        "script-src-attr",
        "script-src-elem",
        "style-src-attr",
    ];
    assert_eq!(found, json!({"ran": false, "other": "held", "held": held}));
}
