//! What a script sees (`params`, `node`, `deployment`, `peers`) and how it speaks.

use std::sync::Arc;

use rhai::{Dynamic, Engine, NativeCallContext, Position};
use rhizome_model::Code;
use serde_json::json;

use super::session::Session;
use super::value::{NoJson, from_json, to_json};
use super::{Fallible, function, place};
use crate::Context;
use crate::diagnostic::Finding;
use crate::wire::Call;

/// The variables that every script has, and what they are.
pub const NAMES: [(&str, &str); 4] = [
    ("params", "The parameters of the deployment, a map. One that was not given is `()`."),
    (
        "node",
        "This node: `#{ id, farm, address, capacity: #{ cpu, memory, disk } }`, sizes in bytes.",
    ),
    ("deployment", "This deployment: `#{ account, name, version }`."),
    ("peers", "The other nodes of this deployment: an array of `#{ node, address }`."),
];

pub fn register(engine: &mut Engine, session: &Arc<Session>) {
    let own = Arc::clone(session);
    function("secret", &["name: &str", "String"], "Stands for a secret of the deployment: where it is put into a spec, the machine gets the secret.")
        .register_into_engine(engine, move |name: &str| -> Fallible<Dynamic> {
            own.call(Call::Secret(name.to_owned())).map(|value| from_json(&value))
        });
    let own = Arc::clone(session);
    function("log", &["message: ?", "()"], "Says something to whoever watches.")
        .register_into_engine(
            engine,
            move |context: NativeCallContext, message: Dynamic| -> Fallible<()> {
                log(&own, place(&context), message.to_string())
            },
        );
    let own = Arc::clone(session);
    function("output", &["key: &str", "value: ?", "()"], "Sets a result of the deployment.")
        .register_into_engine(
            engine,
            move |context: NativeCallContext, key: &str, value: Dynamic| -> Fallible<()> {
                output(&own, place(&context), key, &value)
            },
        );
    let own = Arc::clone(session);
    function("fail", &["message: &str", "()"], "Ends the script: the deployment fails.")
        .register_into_engine(
            engine,
            move |context: NativeCallContext, message: &str| -> Fallible<()> {
                Err(own.refuse(Finding::new(Code::ScriptFailed, place(&context), message)))
            },
        );
    // A refused message ends the evaluation at its next operation.
    let own = Arc::clone(session);
    engine.on_print(move |text| drop(log(&own, Position::NONE, text.to_owned())));
    let own = Arc::clone(session);
    engine.on_debug(move |text, _, at| drop(log(&own, at, text.to_owned())));
}

/// Gives a script its variables.
pub fn set(engine: &mut Engine, context: &Context) {
    let address = |a: std::net::Ipv6Addr| a.to_string();
    let peers = context.peers.iter();
    let values = [
        json!(context.params),
        json!(context.node),
        json!({
            "account": context.deployment.account,
            "name": context.deployment.name,
            "version": context.version,
        }),
        peers.map(|p| json!({ "node": p.node, "address": address(p.address) })).collect(),
    ];
    let values: Vec<_> =
        NAMES.iter().zip(values).map(|((name, _), value)| (*name, from_json(&value))).collect();
    // Not constants of a scope: functions and closures see these too. An own variable of the
    // script comes first.
    #[expect(deprecated, reason = "not deprecated, only allowed to change: see its note")]
    engine.on_var(move |name, index, context| {
        if index > 0 || context.scope().contains(name) {
            return Ok(None);
        }
        Ok(values.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone()))
    });
}

fn log(session: &Arc<Session>, at: Position, message: String) -> Fallible<()> {
    let most = session.limits().messages;
    let logged = {
        let mut state = session.state();
        state.logged += 1;
        state.logged
    };
    if logged > most {
        let message = format!("a script logs at most {most} lines");
        return Err(session.refuse(Finding::new(Code::ScriptLimit, at, message)));
    }
    session.call(Call::Log(message)).map(drop)
}

fn output(session: &Arc<Session>, at: Position, key: &str, value: &Dynamic) -> Fallible<()> {
    let refuse = |code, what: String| session.refuse(Finding::new(code, at, what));
    let value = to_json(value).map_err(|no| match no {
        NoJson::Kind(what) => refuse(Code::ScriptInvalid, format!("output \"{key}\": {what}")),
        NoJson::Limit(what) => refuse(Code::ScriptLimit, format!("output \"{key}\": {what}")),
    })?;
    let most = session.limits().messages;
    let outputs = {
        let mut state = session.state();
        state.outputs += 1;
        state.outputs
    };
    if outputs > most {
        return Err(refuse(Code::ScriptLimit, format!("a script sets at most {most} outputs")));
    }
    session.call(Call::Output { key: key.to_owned(), value }).map(drop)
}
