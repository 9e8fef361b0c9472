//! Messages of the Model Context Protocol, which are JSON-RPC 2.0: the tools that they call.

use crate::body::Ask;
use crate::json::{Json, Object};

/// What is no call of a tool. Methods that are not known are not allowed.
const METHODS: [&str; 12] = [
    "initialize",
    "ping",
    "tools/list",
    "prompts/list",
    "prompts/get",
    "resources/list",
    "resources/read",
    "resources/templates/list",
    "resources/subscribe",
    "resources/unsubscribe",
    "completion/complete",
    "logging/setLevel",
];

const KEYS: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];

/// What a body asks for, each message of a batch.
pub(crate) fn of_json(body: &[u8]) -> Result<Vec<Ask>, String> {
    let json = Json::parse(body)?;
    let messages = json.objects()?;
    if messages.is_empty() {
        return Err("it has no message".to_owned());
    }
    messages.into_iter().map(message).collect()
}

fn message(message: &Object) -> Result<Ask, String> {
    message.only(&KEYS)?;
    if message.get("jsonrpc").and_then(Json::text) != Some("2.0") {
        return Err("it is not a message of JSON-RPC 2.0".to_owned());
    }
    let is_answer = message.get("result").is_some() || message.get("error").is_some();
    let Some(method) = message.get("method") else {
        return match is_answer && message.get("id").is_some() && message.get("params").is_none() {
            true => Ok(Ask::Harmless),
            false => Err("it is neither a request nor an answer".to_owned()),
        };
    };
    let method = method.text().ok_or("its method is not a text")?;
    if is_answer {
        return Err("it is a request and an answer at once".to_owned());
    }
    if METHODS.contains(&method) || method.starts_with("notifications/") {
        return Ok(Ask::Harmless);
    }
    if method != "tools/call" {
        return Err(format!("its method {method:?} is not one that rules know"));
    }
    let params = message.get("params").and_then(Json::object);
    let params = params.ok_or("it calls a tool and does not say which")?;
    params.check(&["name", "arguments", "task", "_meta"])?;
    match params.get("name").and_then(Json::text) {
        Some(name) => Ok(Ask::Tool(name.to_owned())),
        None => Err("it calls a tool and does not say which".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(text: &str) -> Result<Vec<Ask>, String> {
        of_json(text.as_bytes())
    }

    fn call(name: &str) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":{name:?},"arguments":{{"a":[1]}}}}}}"#
        )
    }

    #[test]
    fn a_call_is_named_by_its_tool() {
        assert_eq!(asks(&call("search")), Ok(vec![Ask::Tool("search".into())]));
        let batch = format!("[{},{}]", call("a"), call("b"));
        assert_eq!(asks(&batch), Ok(vec![Ask::Tool("a".into()), Ask::Tool("b".into())]));
    }

    #[test]
    fn other_methods_and_answers_are_harmless() {
        for text in [
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no"}}"#,
        ] {
            assert_eq!(asks(text), Ok(vec![Ask::Harmless]), "{text}");
        }
    }

    #[test]
    fn a_message_with_two_meanings_is_refused() {
        for text in [
            r#"{"jsonrpc":"2.0","method":"tools/list","method":"tools/call","params":{"name":"a"}}"#,
            r#"{"jsonrpc":"2.0","method":"tools/list","Method":"tools/call","params":{"name":"a"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","Name":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","\u004eame":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":["a"]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["a"]}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call ","params":{"name":"a"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"Tools/Call","params":{"name":"a"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#,
            r#"{"id":1,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0"}"#,
            "[]",
            "[[]]",
            "null",
        ] {
            assert!(asks(text).is_err(), "{text}");
        }
    }
}
