/* Holdfast's protocol for spin: one transaction, two branches, two replicas of the coordinator, any network.
 *
 * `make model` searches it; docs/explanation/model.md says what is modelled, what is not, and what was found. Names are those
 * of the code with `_` for the dot (tables.pml). Every d_step is one step that a crash can't divide: a commit,
 * or a thought in the memory of one replica. All interleavings of these steps are searched.
 *
 * The network keeps every message for ever and delivers it at any time, any number of times, or never: it loses,
 * duplicates and reorders without a bound. A replica may forget everything, or be overtaken, at any time: so one that
 * is frozen (no step of it is taken) and wakes, a lease that ends early, and a crash between any two steps are all
 * there, as often as you like. Nothing counts, so the search is finite without a bound on any of these.
 *
 * Configurations, by -D:
 *   KIND_0, KIND_1  the kinds of the branches, of all but pivots; else both are TCC
 *   SEQUENTIAL   the second Try leaves only when the first branch holds; else both leave at once
 *   DEADLINE     the deadline passes once, for good, and a decision to confirm takes its time to become durable
 *   HARD_LIMIT   participants give a hold up without being told (hold_max_s)
 *   REACQUIRE    and a late Confirm may have it again
 *   LIVENESS     at some time the faults end: a message is delivered once, nobody crashes or is overtaken early; one
 *                replica may be gone for ever. From then on every run must end, and end well
 *   EFFECTS      only what is seen at the participants is asserted, not the rules that prevent it
 *   MISTAKE_...  one safeguard is left out: an assertion must fail
 */

#include "tables.pml"

#ifndef KIND_0
#define KIND_0 Kind_TCC
#define KIND_1 Kind_TCC
#endif
#define KIND(b) ((b) == 0 -> KIND_0 : KIND_1)

/* What follows from a branch's kind, that is from the operations that it has. */
#define FIRST(b) ASKS(KIND(b), BranchPhase_PENDING)               /* NONE: it is called after the decision only */
#define HAS_CONFIRM(b) (ASKS(KIND(b), BranchPhase_CONFIRMING) != NONE)   /* what it holds is not final by itself */
#define HAS_CANCEL(b) (ASKS(KIND(b), BranchPhase_CANCELLING) != NONE)    /* what it did first can be undone */
#define STARTS(b) (FIRST(b) == NONE -> BranchPhase_PENDING : BranchPhase_TRYING)

#ifdef REACQUIRE
#define HARD_LIMIT
#define FENCED_THEN FENCE_THEN_REACQUIRING
#define FENCED_RUNS FENCE_RUNS_REACQUIRING
#define REPLY FENCE_ANSWER_REACQUIRING
#else
#define FENCED_THEN FENCE_THEN
#define FENCED_RUNS FENCE_RUNS
#define REPLY FENCE_ANSWER
#endif

#ifdef EFFECTS
#define rule(it) skip
#else
#define rule(it) assert(it)
#endif
#define effect(it) assert(it)
#ifdef REACH
#define reached(what, it) assert(REACH != what || !(it))
#define ENDS_CONFIRMED 1
#define ENDS_CANCELLED 2
#define REFUSES_LATE_TRY 3
#define RELEASED_WHEN_TOLD 4
#define SAVES_IN_VAIN 5
#else
#define reached(what, it) skip
#endif

/* --- the safeguards, and what is left of them when one is left out ------------------------------------------------ */

#ifdef MISTAKE_NO_VERSION_CHECK              /* a replica that was overtaken may save */
#define MAY_SAVE(r) (row_decision != NONE || !finished)
#else
#define MAY_SAVE(r) is_current[r]
#endif

#ifdef MISTAKE_DECIDES_EARLY                 /* confirms when one branch holds */
#define MAY_CONFIRM(r) (IS_READY(r, 0) || IS_READY(r, 1))
#else
#define MAY_CONFIRM(r) (IS_READY(r, 0) && IS_READY(r, 1))
#endif

#ifdef MISTAKE_SAVES_LATE                    /* whether it is too late is looked at when it is decided, and then no more */
#define IS_IN_TIME true
#else
#define IS_IN_TIME !is_late
#endif

#ifdef MISTAKE_CALLS_BEFORE_SAVE             /* the decision is saved when everything has been called */
#define MUST_SAVE(r) ALL_FINAL(r)
#else
#define MUST_SAVE(r) (must_save || ALL_FINAL(r))
#endif

#ifdef MISTAKE_NO_CANCEL_OF_UNANSWERED       /* a Try without an answer is taken for one that does not hold */
#define AFTER(kind, decision, phase) ((decision) == Decision_CANCEL && (phase) == BranchPhase_TRYING -> \
  BranchPhase_CANCELLED : FOLLOWS(kind, decision, phase))
#else
#define AFTER(kind, decision, phase) FOLLOWS(kind, decision, phase)
#endif

#ifdef MISTAKE_LATE_ANSWERS                  /* whatever a participant said counts as the answer to the last call */
#define HEARD(b, operation, answer) (answers[b] & (SAID(Operation_TRY, answer) | \
  SAID(Operation_CONFIRM, answer) | SAID(Operation_CANCEL, answer)))
#else
#define HEARD(b, operation, answer) (answers[b] & SAID(operation, answer))
#endif

#ifdef MISTAKE_REFUSED_IS_DONE               /* "I don't have that any more" is taken for "done" */
#define BECOMES(phase, answer) ((phase) == BranchPhase_CONFIRMING && (answer) == Answer_REFUSED -> \
  BranchPhase_CONFIRMED : ANSWERED(phase, answer))
#else
#define BECOMES(phase, answer) ANSWERED(phase, answer)
#endif

#ifdef MISTAKE_NO_TOMBSTONE                  /* a Cancel or compensation that finds nothing leaves nothing */
#define THEN(b, event) (state[b] == State_NOTHING && UNDOES(event) -> \
  State_NOTHING : FENCED_THEN(KIND(b), state[b], event))
#else
#define THEN(b, event) FENCED_THEN(KIND(b), state[b], event)
#endif
#define UNDOES(event) ((event) == Event_CANCEL || (event) == Event_COMPENSATION)

#ifdef MISTAKE_NO_FENCE                      /* a Confirm runs its handler whatever the row says */
#define RUNS(b, event) ((event) == Event_CONFIRM -> BIT(Operation_CONFIRM) : FENCED_RUNS(KIND(b), state[b], event))
#else
#define RUNS(b, event) FENCED_RUNS(KIND(b), state[b], event)
#endif

#if defined(MISTAKE_RELEASES_WITHOUT_ASKING) /* the hold's time is up, and it is given up as if told to */
#define TOLD Event_TOLD_CANCEL
#elif defined(MISTAKE_UNDECIDED_IS_CANCEL)   /* only a Confirm keeps a hold */
#define TOLD (row_decision == Decision_CONFIRM -> Event_TOLD_CONFIRM : Event_TOLD_CANCEL)
#elif defined(MISTAKE_UNKNOWN_IS_CONFIRM)    /* and that of which nobody knows is kept */
#define TOLD (row_decision == Decision_UNDECIDED -> NONE : \
  (row_decision == Decision_CANCEL -> Event_TOLD_CANCEL : Event_TOLD_CONFIRM))
#else
#define TOLD (row_decision == Decision_UNDECIDED -> NONE : \
  (row_decision == Decision_CONFIRM -> Event_TOLD_CONFIRM : Event_TOLD_CANCEL))
#endif

/* --- the durable row ------------------------------------------------------------------------------------------ */

byte row_decision;     /* NONE: there is no row: not recorded yet, or purged */
byte row_phase[2];
bool begun;
bool finished;         /* it has ended; purging the row does not take that back */
bool is_current[2];    /* the version that this replica saw last is the row's: versions are compared for equality alone */

/* --- what a replica has in memory; NONE: it doesn't work on the transaction -------------------------------------- */

byte decision[2];
byte phase[4];
bool calling[4];       /* its own call to the branch has not ended */
#define PHASE(r, b) phase[2 * (r) + (b)]
#define CALLING(r, b) calling[2 * (r) + (b)]
#define IS_READY(r, b) (PHASE(r, b) == READY(KIND(b)))
#define OPERATION(r, b) ASKS(KIND(b), PHASE(r, b))

#ifdef DEADLINE
bool is_late;          /* the deadline has passed, or a hold may have run out */
bool is_deciding[2];   /* waits until its decision to confirm is durable, and does nothing else meanwhile */
#define IS_LATE is_late
#define IS_DECIDING(r) is_deciding[r]
#else
#define IS_LATE false
#define IS_DECIDING(r) false
#endif

/* --- the network: a set of requests and a set of answers for every branch ---------------------------------------- */

byte requests[2];
short answers[2];
#define BIT(operation) (1 << (operation))
#define SAID(operation, answer) (1 << (2 * (operation) + (answer) - 3))

/* --- the participants: their rows, and what really happened there ------------------------------------------------ */

byte state[2] = State_NOTHING;
byte verdict[2];       /* what the participant was told and has not acted on; TOLD_CONFIRM: it asks no more */
bool was_cancelled[2]; /* a Cancel or compensation was carried out here, or what an inquiry said in its place */
bool has_acted[2];     /* the handler ran whose effect stays: of Confirm, or of an action */

#ifdef HARD_LIMIT
#define BOTH_HOLD true                       /* a participant that gives up alone may do so unseen */
#else
#define BOTH_HOLD (HOLDS(0) && HOLDS(1))
#endif
#define HOLDS(b) (!HAS_CANCEL(b) || state[b] == State_HELD)       /* else there is nothing to keep, and no row */
#define IS_SETTLED(b) (!HAS_CONFIRM(b) || state[b] != State_HELD) /* nothing waits for the decision here */

#define IS_OVER ((finished || row_decision == NONE) && IS_SETTLED(0) && IS_SETTLED(1))

/* --- the calm after the faults ------------------------------------------------------------------------------------ */

#ifdef LIVENESS
bool is_calm, is_over;
bool is_down[2];       /* for ever; at most one of the two */
#define IS_CALM is_calm
#define IS_UP(r) (!is_down[r])
#define NOTHING_COMES(r, b) (!(MAY_ARRIVE(b, OPERATION(r, b)) || \
  HEARD(b, OPERATION(r, b), Answer_SUCCEEDED) || HEARD(b, OPERATION(r, b), Answer_REFUSED)))
#ifdef MISTAKE_NO_LEASE                      /* whoever has nothing to do takes over what another works on */
#define LEASE_HAS_LAPSED(r) true
#else
#define LEASE_HAS_LAPSED(r) (!WORKS(1 - (r)) || !is_current[1 - (r)])
#endif
#else
#define IS_CALM false
#define IS_UP(r) true
#define NOTHING_COMES(r, b) true
#define LEASE_HAS_LAPSED(r) true
#endif
#define MAY_ARRIVE(b, operation) (requests[b] & BIT(operation))

/* scratch, zero between two steps */
byte to_, ran_;
bool must_save;

/* --- replicas ---------------------------------------------------------------------------------------------------- */

#define MAY_TAKE(r, b, answer) (CALLING(r, b) && HEARD(b, OPERATION(r, b), answer))
#define WORKS(r) (decision[r] != NONE)
#define ALL_FINAL(r) (IS_FINAL(PHASE(r, 0)) && IS_FINAL(PHASE(r, 1)))
#define IS_REFUSED(r) (PHASE(r, 0) == BranchPhase_REFUSED || PHASE(r, 1) == BranchPhase_REFUSED)
#ifdef SEQUENTIAL
#define IS_ITS_TURN(r, b) ((b) == 0 || IS_READY(r, 0))
#else
#define IS_ITS_TURN(r, b) true
#endif
#define MAY_CALL(r, b) (WORKS(r) && !CALLING(r, b) && OPERATION(r, b) != NONE && \
  (OPERATION(r, b) != FIRST(b) || (decision[r] == Decision_UNDECIDED && IS_ITS_TURN(r, b))))
#define MAY_CLAIM(r) (row_decision != NONE && !finished && !WORKS(r))

inline forget(r) {
  decision[r] = NONE; is_current[r] = false;
#ifdef DEADLINE
  is_deciding[r] = false;
#endif
  PHASE(r, 0) = NONE; PHASE(r, 1) = NONE;
  CALLING(r, 0) = false; CALLING(r, 1) = false
}

/* One conditional write; whoever was overtaken learns it here, and stops. */
inline save(r) {
  if
  :: MAY_SAVE(r) ->
    rule(is_current[r]);                                                        /* a deposed replica's save fails */
    rule(row_decision == NONE || row_decision == Decision_UNDECIDED || row_decision == decision[r]);
    rule(decision[r] != Decision_CONFIRM || row_decision == Decision_CONFIRM || BOTH_HOLD);
    rule(decision[r] != Decision_CONFIRM || row_decision == Decision_CONFIRM || !IS_LATE);
    printf("  saved: Decision %d, BranchPhase %d, BranchPhase %d\n", decision[r], PHASE(r, 0), PHASE(r, 1));
    row_decision = decision[r]; row_phase[0] = PHASE(r, 0); row_phase[1] = PHASE(r, 1);
    is_current[1 - r] = false; is_current[r] = true;
    if
    :: ALL_FINAL(r) -> finished = true; check_end(); forget(r)
    :: else
    fi
  :: else -> printf("  not saved: stale\n"); reached(SAVES_IN_VAIN, true); forget(r)
  fi
}

inline check_end() {
  reached(ENDS_CONFIRMED, row_decision == Decision_CONFIRM);
  reached(ENDS_CANCELLED, row_decision == Decision_CANCEL);
  check_end_of(0); check_end_of(1)
}

/* After a confirm everything stands, after a cancel nothing does; a branch without effects has nothing to show. */
inline check_end_of(b) {
  effect(IS_SETTLED(b));
  if
  :: HAS_CONFIRM(b) -> effect((row_decision == Decision_CONFIRM) == (state[b] == State_CONFIRMED))
  :: !HAS_CONFIRM(b) && HAS_CANCEL(b) -> effect((row_decision == Decision_CONFIRM) == (state[b] == State_HELD))
  :: else
  fi
}

/* What follows from what is known: decide, turn the branches to Confirm or Cancel, and save what others must know. */
inline advance(r) {
  if
  :: decision[r] == Decision_UNDECIDED && IS_REFUSED(r) -> decide(r, Decision_CANCEL)
  :: decision[r] == Decision_UNDECIDED && MAY_CONFIRM(r) -> confirm(r)
  :: else
  fi;
  follow(r)
}

inline confirm(r) {
#ifdef DEADLINE
  if
  :: is_late -> decide(r, Decision_CANCEL)
  :: else -> is_deciding[r] = true
  fi
#else
  decide(r, Decision_CONFIRM)
#endif
}

#ifdef DEADLINE
/* Right before COMMIT; what is too late is decided again. */
inline commit(r) {
  is_deciding[r] = false;
  if
  :: IS_IN_TIME -> decide(r, Decision_CONFIRM)
  :: else -> decide(r, Decision_CANCEL)
  fi;
  follow(r)
}
#endif

inline decide(r, it) {
  decision[r] = it; must_save = true
}

inline follow(r) {
  follow_one(r, 0); follow_one(r, 1);
  if
  :: MUST_SAVE(r) -> save(r)
  :: else
  fi;
  to_ = NONE; must_save = false
}

inline follow_one(r, b) {
  to_ = AFTER(KIND(b), decision[r], PHASE(r, b));
  if
  :: to_ != NONE && !CALLING(r, b) -> PHASE(r, b) = to_
  :: else
  fi
}

inline begin(r) {
  begun = true; is_current[r] = true;
  decision[r] = Decision_UNDECIDED; PHASE(r, 0) = STARTS(0);
#ifdef SEQUENTIAL
  PHASE(r, 1) = BranchPhase_PENDING;
#else
  PHASE(r, 1) = STARTS(1);
#endif
#ifndef MISTAKE_TRY_BEFORE_RECORD
  save(r);
#endif
  advance(r)                                             /* where no branch is called first, it is decided now */
}

/* The version goes up, which stops whoever had the transaction; then all goes on from the row. */
inline claim(r) {
  is_current[1 - r] = false; is_current[r] = true;
#ifdef MISTAKE_FORGETS_DECISION
  decision[r] = Decision_UNDECIDED; PHASE(r, 0) = STARTS(0); PHASE(r, 1) = STARTS(1);
#else
  decision[r] = row_decision; PHASE(r, 0) = row_phase[0]; PHASE(r, 1) = row_phase[1];
#endif
  advance(r)
}

inline call(r, b) {
  if
  :: PHASE(r, b) == BranchPhase_PENDING ->
    PHASE(r, b) = BranchPhase_TRYING
#ifndef MISTAKE_PENDING_NOT_SAVED
    ; save(r)
#endif
  :: else ->
    rule(row_decision != NONE || finished);                                  /* the record is durable before a Try, */
    rule(OPERATION(r, b) == FIRST(b) || row_decision == decision[r] || finished);  /* the decision before the rest */
    printf("replica %d calls participant %d: Operation %d\n", r, b, OPERATION(r, b));
    requests[b] = requests[b] | BIT(OPERATION(r, b)); CALLING(r, b) = true
  fi
}

inline end_call(r, b, answer) {
  printf("replica %d: its call of participant %d has ended: Operation %d, Answer %d\n", r, b, OPERATION(r, b), answer);
#ifdef LIVENESS
  if
  :: is_calm -> answers[b] = answers[b] & ~SAID(OPERATION(r, b), answer)
  :: else
  fi;
#endif
#ifdef MISTAKE_CONFIRM_GIVEN_UP               /* a Confirm that is not answered is cancelled instead */
  if
  :: OPERATION(r, b) == Operation_CONFIRM && answer == Answer_UNANSWERED ->
    decide(r, Decision_CANCEL); PHASE(r, b) = BranchPhase_CANCELLING; CALLING(r, b) = false
  :: else ->
    PHASE(r, b) = BECOMES(PHASE(r, b), answer); CALLING(r, b) = false
  fi;
#else
  PHASE(r, b) = BECOMES(PHASE(r, b), answer); CALLING(r, b) = false;
#endif
  advance(r)
}

proctype replica(byte r) {
end:
  do
  :: d_step { r == 0 && !begun -> printf("replica %d begins the transaction\n", r); begin(r) }
  :: d_step { decision[r] == Decision_UNDECIDED && !IS_DECIDING(r) && IS_UP(r) ->
       printf("replica %d: the deadline has passed, a hold may run out, or somebody cancels\n", r);
       decide(r, Decision_CANCEL); follow(r) }
#ifdef DEADLINE
  :: d_step { is_deciding[r] -> printf("replica %d commits its decision\n", r); commit(r) }
  :: d_step { r == 0 && !is_late -> printf("the deadline has passed\n"); is_late = true }
#endif
#ifndef MISTAKE_NO_RECOVERY                                     /* else nobody claims what another left */
  :: d_step { MAY_CLAIM(r) && IS_UP(r) && (!IS_CALM || LEASE_HAS_LAPSED(r)) ->
       printf("replica %d claims\n", r); claim(r) }
#endif
  :: d_step { WORKS(r) && !IS_CALM -> printf("replica %d crashes\n", r); forget(r) }
  :: d_step { WORKS(r) && !IS_DECIDING(r) && !IS_CALM ->           /* the lease: known answers ride along */
       printf("replica %d renews its lease\n", r); save(r) }
#ifndef LIVENESS
  :: d_step { r == 0 && finished && row_decision != NONE ->
       printf("purged\n"); row_decision = NONE; row_phase[0] = NONE; row_phase[1] = NONE }
#endif
  od
}

/* The calls of one replica to one branch. */
proctype link(byte r; byte b) {
end:
  do
  :: d_step { MAY_CALL(r, b) && IS_UP(r) -> call(r, b) }
  :: d_step { MAY_TAKE(r, b, Answer_SUCCEEDED) && IS_UP(r) -> end_call(r, b, Answer_SUCCEEDED) }
  :: d_step { MAY_TAKE(r, b, Answer_REFUSED) && IS_UP(r) -> end_call(r, b, Answer_REFUSED) }
#ifndef MISTAKE_NO_REPETITION                                   /* else a call is waited for until it is answered */
  :: d_step { CALLING(r, b) && IS_UP(r) && (!IS_CALM || NOTHING_COMES(r, b)) -> end_call(r, b, Answer_UNANSWERED) }
#endif
  od
}

/* --- participants ------------------------------------------------------------------------------------------------ */

#define BEGINS (BIT(Operation_TRY) | BIT(Operation_ACTION))
#define STAYS (BIT(Operation_CONFIRM) | BIT(Operation_ACTION))

/* One local transaction: handlers and row together. */
inline happen(b, event) {
  ran_ = RUNS(b, event);
  printf("participant %d: Event %d, its row says State %d, then State %d\n", b, event, state[b], THEN(b, event));
  reached(REFUSES_LATE_TRY, state[b] == State_CANCELLED && (BIT(event) & BEGINS));
  reached(RELEASED_WHEN_TOLD, state[b] == State_HELD && event == Event_TOLD_CANCEL);
  state[b] = THEN(b, event);
#ifndef REACQUIRE
  effect(!(ran_ & BEGINS) || !was_cancelled[b]);         /* no hold by a Try after its Cancel, no action after its */
#endif                                                     /* compensation, */
  effect(!(ran_ & BEGINS) || !finished);                 /* and none after the end */
  effect(!(ran_ & STAYS) || !has_acted[b]);              /* an effect happens once */
  has_acted[b] = has_acted[b] || (ran_ & STAYS);
  was_cancelled[b] = was_cancelled[b] || UNDOES(event) || event == Event_TOLD_CANCEL;
  effect(!(state[0] == State_CONFIRMED && state[1] == State_CANCELLED));
  effect(!(state[1] == State_CONFIRMED && state[0] == State_CANCELLED));
  ran_ = 0
}

inline deliver(b, operation) {
  consume(b, operation);
  answers[b] = answers[b] | SAID(operation, REPLY(KIND(b), state[b], operation));
  happen(b, operation)                        /* the events of calls are numbered as the operations are */
}

/* It leaves nothing behind. */
inline refuse(b, operation) {
  printf("participant %d refuses: Operation %d\n", b, operation);
  consume(b, operation); answers[b] = answers[b] | SAID(operation, Answer_REFUSED)
}

inline consume(b, operation) {
#ifdef LIVENESS
  if
  :: is_calm -> requests[b] = requests[b] & ~BIT(operation)
  :: else
  fi
#else
  skip
#endif
}

proctype participant(byte b) {
end:
  do
  :: d_step { MAY_ARRIVE(b, Operation_TRY) -> deliver(b, Operation_TRY) }
  :: d_step { MAY_ARRIVE(b, Operation_TRY) && state[b] == State_NOTHING -> refuse(b, Operation_TRY) }
  :: d_step { MAY_ARRIVE(b, Operation_CONFIRM) -> deliver(b, Operation_CONFIRM) }
  :: d_step { MAY_ARRIVE(b, Operation_CANCEL) -> deliver(b, Operation_CANCEL) }
  :: d_step { MAY_ARRIVE(b, Operation_ACTION) -> deliver(b, Operation_ACTION) }
  :: d_step { MAY_ARRIVE(b, Operation_ACTION) && state[b] == State_NOTHING && (FIRST(b) != NONE || !IS_CALM) ->
       refuse(b, Operation_ACTION) }             /* after the decision that is a fault, and it is asked again */
  :: d_step { MAY_ARRIVE(b, Operation_COMPENSATION) -> deliver(b, Operation_COMPENSATION) }
  od
}

/* Looks after holds whose time is up, which may be at any time: asks, and later does what it was told. */
proctype reaper(byte b) {
end:
  do
  :: d_step { FENCE_ASKS(KIND(b), state[b]) && verdict[b] == NONE && TOLD != NONE ->
       rule(row_decision != NONE);                              /* of what is held, the coordinator always knows */
       verdict[b] = TOLD; printf("participant %d asked: Event %d\n", b, verdict[b]) }
  :: d_step { verdict[b] == Event_TOLD_CANCEL -> verdict[b] = NONE; happen(b, Event_TOLD_CANCEL) }
#ifdef HARD_LIMIT
  :: d_step { FENCE_ASKS(KIND(b), state[b]) && verdict[b] == NONE -> happen(b, Event_ABANDONED) }
#endif
  od
}

#ifdef LIVENESS
/* Whatever is under way when the faults end is lost, but for one straggler (the branches are alike: to the first). */
inline become_calm(straggler) {
  is_calm = true; printf("no more faults\n");
  requests[0] = straggler; requests[1] = 0;
  answers[0] = 0; answers[1] = 0
}
#endif

init {
  atomic {
    run replica(0); run replica(1);
    run link(0, 0); run link(0, 1); run link(1, 0); run link(1, 1);
    run participant(0); run participant(1);
    run reaper(0); run reaper(1)
  }
#ifdef LIVENESS
  if
  :: d_step { begun -> become_calm(0) }
  :: d_step { begun -> become_calm(0); is_down[0] = true; forget(0); printf("replica 0 is gone\n") }
  :: d_step { begun -> become_calm(0); is_down[1] = true; forget(1); printf("replica 1 is gone\n") }
  :: d_step { begun && MAY_ARRIVE(0, Operation_TRY) -> become_calm(BIT(Operation_TRY)) }
  :: d_step { begun && MAY_ARRIVE(0, Operation_CONFIRM) -> become_calm(BIT(Operation_CONFIRM)) }
  :: d_step { begun && MAY_ARRIVE(0, Operation_CANCEL) -> become_calm(BIT(Operation_CANCEL)) }
  :: d_step { begun && MAY_ARRIVE(0, Operation_ACTION) -> become_calm(BIT(Operation_ACTION)) }
  :: d_step { begun && MAY_ARRIVE(0, Operation_COMPENSATION) -> become_calm(BIT(Operation_COMPENSATION)) }
  fi;
  timeout -> effect(IS_OVER); is_over = true  /* nothing can happen any more */
#endif
}

#ifdef LIVENESS
never {                                       /* a run that goes on for ever after the faults have ended */
  do
  :: !is_calm
  :: is_calm -> break
  od;
accept:
  do
  :: is_calm && !is_over
  od
}
#endif
