//! What `deploy` and `delete` show while they wait: nothing, plain lines, or a line per resource that
//! lives.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use jiff::tz::TimeZone;
use rhizome_model::api::DeploymentView;
use rhizome_model::{Event, Failure, Name, NodeId, What, WorkloadKind};

use super::{clean, duration, event};
use crate::output;

const TICK: Duration = Duration::from_millis(100);

pub struct Reporter {
    form: Form,
    zone: TimeZone,
    /// The nodes of which we said why nothing moves, since something moved last.
    waiting: BTreeSet<NodeId>,
}

enum Form {
    Quiet,
    Plain,
    Live(Box<Live>),
}

struct Live {
    all: MultiProgress,
    resources: BTreeMap<(Option<NodeId>, Name), ProgressBar>,
    style: ProgressStyle,
    ended: ProgressStyle,
}

impl Reporter {
    pub fn new(json: bool) -> Self {
        let form = if json {
            Form::Quiet
        } else if output::stdout_is_terminal() && output::stderr_is_terminal() {
            Form::Live(Box::new(Live::new()))
        } else {
            Form::Plain
        };
        Self { form, zone: TimeZone::system(), waiting: BTreeSet::new() }
    }

    pub fn event(&mut self, event: &Event) {
        self.waiting.clear();
        match &mut self.form {
            Form::Quiet => {}
            Form::Plain => output::line(event::line(event, &self.zone)),
            Form::Live(live) => {
                if !live.resource_event(event) {
                    live.say(event::line(event, &self.zone));
                }
            }
        }
    }

    /// Why nothing moves, where coord knows.
    pub fn waiting(&mut self, view: &DeploymentView) {
        for task in &view.tasks {
            let Some(reason) = &task.waiting_for else { continue };
            if self.waiting.insert(task.node) {
                self.say(format!("node {}: waiting for {}", task.node, clean(reason)));
            }
        }
    }

    pub fn away(&mut self, failure: &Failure) {
        self.say(format!("{failure}; the deployment goes on, and we try again to see it"));
    }

    pub fn back(&mut self) {
        self.say("coord is back".to_owned());
    }

    /// Takes down what lives on the screen; what is finished stays.
    pub fn done(&mut self) {
        if let Form::Live(live) = &mut self.form {
            for bar in live.resources.values().filter(|bar| !bar.is_finished()) {
                bar.finish();
            }
        }
    }

    /// A remark about the waiting itself: beside the result, so never on standard output.
    fn say(&mut self, text: String) {
        match &self.form {
            Form::Quiet => {}
            Form::Plain => output::note(text),
            Form::Live(live) => live.say(text),
        }
    }
}

impl Live {
    fn new() -> Self {
        let style = |template| {
            ProgressStyle::with_template(template)
                .expect("the template is fixed and tested")
                .tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ")
        };
        Self {
            all: MultiProgress::new(),
            resources: BTreeMap::new(),
            style: style("{spinner} {prefix} {wide_msg}"),
            ended: style("  {prefix} {wide_msg}"),
        }
    }

    fn say(&self, text: String) {
        // A terminal that takes no line now is gone; the process will hear of it by its signal.
        let _ = self.all.println(text);
    }

    /// True where the event is shown on its resource's line.
    fn resource_event(&mut self, event: &Event) -> bool {
        match &event.what {
            What::Declared { resource, kind, .. } => {
                self.bar(event.node, resource, *kind).set_message("…");
            }
            What::Ready { resource, kind, status, done } => {
                let text = event::ready(*done, status);
                self.end(event.node, resource, *kind, text);
            }
            What::ResourceDeleted { resource, kind } => {
                self.end(event.node, resource, *kind, "deleted".to_owned());
            }
            What::ResourceFailed { resource, kind, failure, retry_in_ms: Some(ms) } => {
                let text = format!("{}; again in {}", event::because(failure), duration(*ms));
                self.bar(event.node, resource, *kind).set_message(text);
            }
            What::ResourceFailed { resource, kind, failure, retry_in_ms: None } => {
                let text = format!("failed: {}", event::because(failure));
                self.end(event.node, resource, *kind, text);
            }
            What::Phase { .. }
            | What::Log { .. }
            | What::Output { .. }
            | What::Retrying { .. }
            | What::Drift { .. } => return false,
        }
        true
    }

    fn bar(&mut self, node: Option<NodeId>, name: &Name, kind: WorkloadKind) -> &ProgressBar {
        self.resources.entry((node, name.clone())).or_insert_with(|| {
            let bar = self.all.add(ProgressBar::new_spinner());
            bar.set_style(self.style.clone());
            let place = node.map_or_else(String::new, |node| format!("node {node}  "));
            bar.set_prefix(format!("{place}{kind} {name}"));
            bar.enable_steady_tick(TICK);
            bar
        })
    }

    fn end(&mut self, node: Option<NodeId>, name: &Name, kind: WorkloadKind, text: String) {
        let ended = self.ended.clone();
        let bar = self.bar(node, name, kind);
        bar.set_style(ended);
        bar.finish_with_message(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_has_one_line_from_begin_to_end() {
        let mut live = Live::new();
        let name: Name = "web".parse().unwrap();
        let event = |what| Event {
            at: 0,
            deployment: "1/demo".parse().unwrap(),
            version: rhizome_model::Version(1),
            node: Some(NodeId(1)),
            what,
        };
        let kind = WorkloadKind::Machine;
        live.resource_event(&event(What::Declared { resource: name.clone(), kind, line: 1 }));
        let status = serde_json::json!({ "address": "5d3::1" });
        live.resource_event(&event(What::Ready {
            resource: name.clone(),
            kind,
            status,
            done: None,
        }));
        let bar = &live.resources[&(Some(NodeId(1)), name)];
        assert!(bar.is_finished() && bar.prefix() == "node 1  machine web");
        assert_eq!(bar.message(), "ready at 5d3::1");
        assert!(!live.resource_event(&event(What::Log { message: "x".into() })));
        assert_eq!(live.resources.len(), 1);
    }
}
