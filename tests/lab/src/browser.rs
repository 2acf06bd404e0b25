//! A headless Chromium with one page, driven as a person does: keys, clicks, what is seen.
//!
//! In: the program that `LAB_CHROMIUM` names ([`setup::chromium`](crate::setup::chromium)). Out:
//! what scripts in the page answer, what the page asked for and complained of, pictures.
//! The protocol is the Chrome DevTools Protocol, each message JSON with a zero byte behind it
//! (`--remote-debugging-pipe`).

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::{At, Error, Result, net};

/// For any answer: the first one waits for Chromium to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running browser and its page.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    /// The page's session, once there is one.
    session: Option<String>,
    sent: u64,
    /// Events of the page that nobody has taken yet.
    events: Vec<Value>,
}

/// A key that is no letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// To the next element.
    Tab,
    /// Does what the focused element does.
    Enter,
    /// Leaves.
    Escape,
}

impl Key {
    /// Name, Windows' code, text.
    const fn what(self) -> (&'static str, u8, &'static str) {
        match self {
            Key::Tab => ("Tab", 9, ""),
            Key::Enter => ("Enter", 13, "\r"),
            Key::Escape => ("Escape", 27, ""),
        }
    }
}

impl Browser {
    /// Starts the browser of the environment.
    ///
    /// # Errors
    /// As [`start_at`](Self::start_at), or `LAB_CHROMIUM` is not set.
    pub fn start() -> Result<Self> {
        let program = std::env::var_os("LAB_CHROMIUM").ok_or_else(|| Error::Missing {
            what: "LAB_CHROMIUM does not name a browser".into(),
            remedy: "run this with `cargo lab test`".into(),
        })?;
        Self::start_at(&PathBuf::from(program))
    }

    /// Starts a browser, with an empty page.
    ///
    /// # Errors
    /// It does not start, or does not answer.
    pub fn start_at(program: &Path) -> Result<Self> {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .at(format!("starting {}", program.display()))?;
        let (Some(commands), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both were asked for")
        };
        let (sender, messages) = mpsc::channel();
        thread::spawn(move || {
            let mut answers = BufReader::new(answers);
            let mut message = Vec::new();
            while answers.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else { break };
                if sender.send(value).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let (session, sent, events) = (None, 0, Vec::new());
        let mut browser = Self { child, commands, messages, session, sent, events };
        let target = browser.command("Target.createTarget", json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.command("Target.attachToTarget", attach)?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.command(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Sends a command of the protocol; its result.
    ///
    /// # Errors
    /// The browser refuses it, has ended, or does not answer.
    pub fn command(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.sent += 1;
        let mut command = json!({"id": self.sent, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        let bytes = [command.to_string().as_bytes(), &[0]].concat();
        self.commands.write_all(&bytes).at(format!("asking the browser for {method}"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.next(deadline, method)?;
            if message["id"] != self.sent {
                self.events.push(message);
            } else if message["error"].is_null() {
                return Ok(message["result"].clone());
            } else {
                let text = message["error"].to_string();
                return Err(Error::Format { what: format!("the browser's {method}"), text });
            }
        }
    }

    fn next(&self, deadline: Instant, what: &str) -> Result<Value> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.messages.recv_timeout(left).map_err(|error| Error::Missing {
            what: format!("the browser's answer to {what}: {error}"),
            remedy: "see whether Chromium runs at all".into(),
        })
    }

    /// Takes what the page told of this kind since it was asked last, for example
    /// `Network.requestWillBeSent`.
    ///
    /// # Errors
    /// The browser has ended.
    pub fn take(&mut self, kind: &str) -> Result<Vec<Value>> {
        // An answer has everything before it that happened earlier.
        self.evaluate("0")?;
        let taken = self.events.extract_if(.., |event| event["method"] == kind);
        Ok(taken.map(|mut event| event["params"].take()).collect())
    }

    /// Opens an address, and waits until it is loaded.
    ///
    /// # Errors
    /// The address does not answer.
    pub fn open(&mut self, address: &str) -> Result<()> {
        self.events.clear();
        let answer = self.command("Page.navigate", json!({"url": address}))?;
        if let Some(text) = answer["errorText"].as_str() {
            return Err(Error::Format { what: address.into(), text: text.into() });
        }
        self.wait_for("document.readyState === \"complete\"")
    }

    /// Shows a document that comes from nowhere.
    ///
    /// # Errors
    /// The browser has ended.
    pub fn show(&mut self, document: &str) -> Result<()> {
        // Otherwise names of the scripts before would still be taken.
        self.open("about:blank")?;
        let tree = self.command("Page.getFrameTree", json!({}))?;
        let frame = &tree["frameTree"]["frame"]["id"];
        self.command("Page.setDocumentContent", json!({"frameId": frame, "html": document}))?;
        self.wait_for("document.readyState === \"complete\"")
    }

    /// What an expression of JavaScript, or its promise, gives in the page.
    ///
    /// # Errors
    /// It throws.
    pub fn evaluate(&mut self, script: &str) -> Result<Value> {
        let parameters = json!({"expression": script, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.command("Runtime.evaluate", parameters)?;
        match answer["exceptionDetails"].is_null() {
            true => Ok(answer["result"]["value"].take()),
            false => {
                let text = answer["exceptionDetails"].to_string();
                Err(Error::Format { what: script.into(), text })
            }
        }
    }

    /// Waits until an expression is true in the page.
    ///
    /// # Errors
    /// It never is: with what the page shows.
    pub fn wait_for(&mut self, script: &str) -> Result<()> {
        let came =
            net::wait_for(script, PATIENCE, || (self.evaluate(script).ok()? == true).then_some(()));
        if came.is_ok() {
            return Ok(());
        }
        let text = self.evaluate("document.body.innerText")?.to_string();
        Err(Error::Format { what: format!("{script} never held; the page"), text })
    }

    /// Presses a key.
    ///
    /// # Errors
    /// The browser has ended.
    pub fn press(&mut self, key: Key) -> Result<()> {
        let (name, code, text) = key.what();
        for kind in ["keyDown", "keyUp"] {
            let mut event =
                json!({"type": kind, "key": name, "code": name, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = json!(text);
            }
            self.command("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// Types a text into what has the focus.
    ///
    /// # Errors
    /// The browser has ended.
    pub fn write(&mut self, text: &str) -> Result<()> {
        self.command("Input.insertText", json!({"text": text})).map(|_| ())
    }

    /// Clicks into the middle of the first element of a CSS selector.
    ///
    /// # Errors
    /// There is none.
    pub fn click(&mut self, selector: &str) -> Result<()> {
        let place = self.evaluate(&format!(
            "(() => {{ const it = document.querySelector({}); it.scrollIntoView({{block: 'center'}}); \
             const r = it.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; \
             }})()",
            json!(selector)
        ))?;
        for kind in ["mousePressed", "mouseReleased"] {
            let (x, y) = (&place[0], &place[1]);
            let event = json!({"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1});
            self.command("Input.dispatchMouseEvent", event)?;
        }
        Ok(())
    }

    /// Has the page believe that its reader prefers `dark` or `light`.
    ///
    /// # Errors
    /// The browser has ended.
    pub fn prefer(&mut self, scheme: &str) -> Result<()> {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.command("Emulation.setEmulatedMedia", json!({"features": [feature]})).map(|_| ())
    }

    /// Gives the window this size in pixels.
    ///
    /// # Errors
    /// The browser has ended.
    pub fn resize(&mut self, width: u32, height: u32) -> Result<()> {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.command("Emulation.setDeviceMetricsOverride", size).map(|_| ())
    }

    /// The whole page as a PNG.
    ///
    /// # Errors
    /// The browser has ended.
    pub fn picture(&mut self) -> Result<Vec<u8>> {
        let layout = self.command("Page.getLayoutMetrics", json!({}))?;
        let mut clip = layout["cssContentSize"].clone();
        clip["scale"] = json!(1);
        let how = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let answer = self.command("Page.captureScreenshot", how)?;
        let text = answer["data"].as_str().unwrap_or_default();
        BASE64_STANDARD.decode(text).map_err(|error| Error::Format {
            what: format!("a picture ({error})"),
            text: text.chars().take(40).collect(),
        })
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its processes are in a namespace that ends with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
