//! Answers that take longer than an asker's patience, over paths that live and one that does not.
//! Time passes only when everybody waits.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::life::list;
use super::slow_path::SlowPath;
use super::*;
use crate::proto::limit::{ANSWER_TIMEOUT, MAX_LATE};

/// Asks for what is late, over a connection that is there and otherwise idle.
async fn ask(late: &SlowPath) -> Exchange {
    status(&late.link).await.expect("up");
    let patience = Patience {
        late: MAX_LATE,
        ..Patience::coordinator()
    };
    let list = list();
    let call = late.link.call(&list, Bytes::new(), patience);
    let exchange = call.await.expect("sent");
    late.node.entered.notified().await;
    exchange
}

async fn slow_path() -> SlowPath {
    SlowPath::from("dev/worker/w1").await
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_be_late_while_its_path_lives() {
    let late = slow_path().await;
    let mut exchange = ask(&late).await;
    let began = tokio::time::Instant::now();
    // Longer than any idle timeout, on a connection over which nothing else goes.
    let alive = || {
        if began.elapsed() > 50 * ANSWER_TIMEOUT {
            late.node.gate.notify_one();
        }
    };
    let answer = exchange.next_noting(alive).await;
    assert!(matches!(answer, Ok(Response::Status(_))), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_given_up_when_its_path_is_cut() {
    let late = slow_path().await;
    let mut exchange = ask(&late).await;
    let lives = AtomicUsize::new(0);
    let alive = || {
        if lives.fetch_add(1, Ordering::Relaxed) == 10 {
            late.path.abort();
        }
    };
    let error = exchange.next_noting(alive).await.expect_err("silence");
    assert!(matches!(error, LinkError::TimedOut { .. }), "{error:?}");
    // What was on its way when it was cut may be one more.
    assert!(lives.load(Ordering::Relaxed) <= 12);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_never_comes_is_given_up_though_its_path_lives() {
    let late = slow_path().await;
    let mut exchange = ask(&late).await;
    let error = exchange.next().await.expect_err("too late");
    assert!(matches!(error, LinkError::TimedOut { .. }), "{error:?}");
    status(&late.link).await.expect("the connection lives");
}
