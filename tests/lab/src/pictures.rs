//! Pictures of the dashboards and of the live page, from what a real Prometheus and a real daemon
//! answered in the lab.
//!
//! In: a folder that the suite with Prometheus has filled (`ESWITCHD_PICTURES`): for each dashboard
//! its answers, and in `page.json` what the daemon says to the live page. Out: a PNG of each. Grafana
//! itself is not here: `pictures.html` draws the panels as far as their JSON says how.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::dashboards::DASHBOARDS;
use crate::{At, Error, Result};

const PANELS: &str = include_str!("pictures.html");
const PAGE: &str = include_str!("../../../api/src/server/ui.html");

/// Comes before the page: answers in the daemon's place.
const REPLAY: &str = r#"<script>
const answers = RECORDED;
window.fetch = async path => {
  if (path === "/v1/events?traffic=true") return new Response(new ReadableStream({
    start: body => body.enqueue(new TextEncoder().encode(answers[path])),
  }));
  const answer = answers[path];
  return answer ? new Response(JSON.stringify(answer)) : new Response("", { status: 404 });
};
</script>
"#;

/// The port that the picture of the page explains.
pub const EXPLAINED: &str = "hw1";

/// Draws all pictures into a folder.
///
/// # Errors
/// An answer is not there, a script fails, the folder cannot be written.
pub fn draw(browser: &mut Browser, answers: &Path, pictures: &Path) -> Result<()> {
    fs::create_dir_all(pictures).at(format!("creating {}", pictures.display()))?;
    let keep = |name: &str, picture: Vec<u8>| {
        let file = pictures.join(format!("{name}.png"));
        fs::write(&file, picture).at(format!("writing {}", file.display()))
    };
    browser.resize(1280, 800)?;
    for (name, dashboard) in DASHBOARDS {
        let mut data = read(answers, name)?;
        data["dashboard"] = parsed(name, dashboard)?;
        let document =
            PANELS.replace("const DATA = null;", &format!("const DATA = {};", inline(&data)));
        browser.show(&document)?;
        if let Some(thrown) = browser.take("Runtime.exceptionThrown")?.first() {
            return Err(Error::Format {
                what: format!("answers for {name}"),
                text: thrown.to_string(),
            });
        }
        keep(name, browser.picture()?)?;
    }
    let page = read(answers, "page")?;
    for scheme in ["light", "dark"] {
        browser.prefer(scheme)?;
        browser.show(&(REPLAY.replace("RECORDED", &inline(&page)) + PAGE))?;
        let port = format!("[data-port='{EXPLAINED}']");
        browser.wait_for(&format!("!!document.querySelector(\"{port}\")"))?;
        browser.click(&port)?;
        browser.wait_for("!!document.querySelector('#why li')")?;
        browser.wait_for("document.querySelector('main').innerText.includes('bit/s')")?;
        // So tall that what stays at the lower edge covers nothing.
        browser.resize(1280, 1300)?;
        keep(&format!("page-{scheme}"), browser.picture()?)?;
    }
    Ok(())
}

fn read(folder: &Path, name: &str) -> Result<Value> {
    let file = folder.join(format!("{name}.json"));
    let text = fs::read_to_string(&file).at(format!("reading {}", file.display()))?;
    parsed(name, &text)
}

fn parsed(name: &str, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::Format {
        what: format!("{name} ({error})"),
        text: text.chars().take(80).collect(),
    })
}

/// JSON as a script may contain it: no text in it ends the script.
fn inline(data: &Value) -> String {
    data.to_string().replace('<', "\\u003c")
}

/// The stream of events that the live page follows.
pub const FOLLOWED: &str = "/v1/events?traffic=true";

/// What the live page asks for first, each path with what is answered.
pub const ASKED: [&str; 3] = ["/v1/adapters", "/v1/ports?limit=500", "/v1/guests?limit=500"];

/// The answers of one query, as [`draw`] reads them.
pub fn answer(query: &crate::dashboards::Query, series: Vec<Value>) -> Value {
    json!({"panel": query.panel, "title": query.title, "legend": query.legend, "series": series})
}
