/* Holdfast's protocol for spin: one transaction, two branches, two replicas of the coordinator, any network.
 *
 * `make model` searches it; docs/model.md says what is modelled, what is not, and what was found. Names are those
 * of the code with `_` for the dot (tables.pml). Every atomic block is one step that a crash can't divide: a commit,
 * or a thought in the memory of one replica. All interleavings of these steps are searched.
 *
 * The network keeps every message for ever and delivers it at any time, any number of times, or never: it loses,
 * duplicates and reorders without a bound. A replica may forget everything, or be overtaken, at any time: so one that
 * is frozen (no step of it is taken) and wakes, a lease that ends early, and a crash between any two steps are all
 * there, as often as you like. Nothing counts, so the search is finite without a bound on any of these.
 *
 * Configurations, by -D:
 *   SEQUENTIAL   the second Try leaves only when the first branch holds; else both leave at once
 *   HARD_LIMIT   participants give a hold up without being told (hold_max_s)
 *   REACQUIRE    and a late Confirm may have it again
 *   LIVENESS     faults are counted and at most FAULTS_MAX; a message is delivered once and lost only by a fault
 *   EFFECTS      only what is seen at the participants is asserted, not the rules that prevent it
 *   MISTAKE_...  one safeguard is left out: an assertion must fail
 */

#include "tables.pml"

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

/* --- the safeguards, and what is left of them when one is left out ------------------------------------------------ */

#ifdef MISTAKE_NO_VERSION_CHECK              /* a replica that was overtaken may save */
#define MAY_SAVE(r) (row_decision != NONE || !finished)
#else
#define MAY_SAVE(r) is_current[r]
#endif

#ifdef MISTAKE_DECIDES_EARLY                 /* confirms when one branch holds */
#define MAY_CONFIRM(r) (PHASE(r, 0) == BranchPhase_HELD || PHASE(r, 1) == BranchPhase_HELD)
#else
#define MAY_CONFIRM(r) (PHASE(r, 0) == BranchPhase_HELD && PHASE(r, 1) == BranchPhase_HELD)
#endif

#ifdef MISTAKE_CALLS_BEFORE_SAVE             /* the decision is saved when everything has been called */
#define MUST_SAVE(r) (IS_FINAL(PHASE(r, 0)) && IS_FINAL(PHASE(r, 1)))
#else
#define MUST_SAVE(r) (must_save || (IS_FINAL(PHASE(r, 0)) && IS_FINAL(PHASE(r, 1))))
#endif

#ifdef MISTAKE_NO_CANCEL_OF_UNANSWERED       /* a Try without an answer is taken for one that does not hold */
#define AFTER(decision, phase) ((decision) == Decision_CANCEL && (phase) == BranchPhase_TRYING -> \
  BranchPhase_CANCELLED : FOLLOWS(decision, phase))
#else
#define AFTER(decision, phase) FOLLOWS(decision, phase)
#endif

#ifdef MISTAKE_LATE_ANSWERS                  /* whatever a participant said counts as the answer to the last call */
#define HEARD(b, operation, answer) (answers[b] & (SAID(Operation_TRY, answer) | \
  SAID(Operation_CONFIRM, answer) | SAID(Operation_CANCEL, answer)))
#else
#define HEARD(b, operation, answer) (answers[b] & SAID(operation, answer))
#endif

#ifdef MISTAKE_REFUSED_IS_DONE               /* "I don't have that any more" is taken for "done" */
#define BECOMES(operation, answer) ((operation) == Operation_CONFIRM && (answer) == Answer_REFUSED -> \
  BranchPhase_CONFIRMED : ANSWERED(operation, answer))
#else
#define BECOMES(operation, answer) ANSWERED(operation, answer)
#endif

#ifdef MISTAKE_NO_TOMBSTONE                  /* a Cancel that finds nothing leaves nothing */
#define THEN(s, event) ((s) == State_NOTHING && (event) == Event_CANCEL -> State_NOTHING : FENCED_THEN(s, event))
#else
#define THEN(s, event) FENCED_THEN(s, event)
#endif

#ifdef MISTAKE_NO_FENCE                      /* a Confirm runs its handler whatever the row says */
#define RUNS(s, event) ((event) == Event_CONFIRM -> BIT(Operation_CONFIRM) : FENCED_RUNS(s, event))
#else
#define RUNS(s, event) FENCED_RUNS(s, event)
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
#define OPERATION(r, b) ASKS(PHASE(r, b))

/* --- the network: a set of requests and a set of answers for every branch ---------------------------------------- */

byte requests[2];
byte answers[2];
#define BIT(operation) (1 << (operation))
#define SAID(operation, answer) (1 << (2 * (operation) + (answer) - 3))

/* --- the participants: their rows, and what really happened there ------------------------------------------------ */

byte state[2] = State_NOTHING;
byte verdict[2];       /* what the participant was told and has not acted on; TOLD_CONFIRM: it asks no more */
bool was_cancelled[2]; /* a Cancel was carried out here, or what an inquiry said in its place */
bool has_confirmed[2]; /* the confirm handler ran */

/* --- faults, where they are counted ------------------------------------------------------------------------------ */

#ifdef LIVENESS
#ifndef FAULTS_MAX
#define FAULTS_MAX 3
#endif
byte faults;
byte frozen[2];        /* 1: for ever, 2: it will wake */
bool asked[4];         /* this is a repetition: whoever was overtaken finds out before it calls again */
#define ASKED(r, b) asked[2 * (r) + (b)]
#define IS_UP(r) (frozen[r] == 0)
#define FAULT (faults < FAULTS_MAX)
#define COUNT_FAULT faults++
#define NOTHING_COMES(r, b) !((requests[b] & BIT(OPERATION(r, b))) || \
  HEARD(b, OPERATION(r, b), Answer_SUCCEEDED) || HEARD(b, OPERATION(r, b), Answer_REFUSED))
#define LEASE_HAS_LAPSED(r) (!WORKS(1 - (r)) || !is_current[1 - (r)] || !IS_UP(1 - (r)))
#else
#define IS_UP(r) true
#define FAULT true
#define COUNT_FAULT skip
#endif

hidden byte to, ran;
hidden byte must_save;

/* --- replicas ---------------------------------------------------------------------------------------------------- */

inline forget(r) {
  decision[r] = NONE; is_current[r] = false;
  PHASE(r, 0) = NONE; PHASE(r, 1) = NONE;
#ifdef LIVENESS
  ASKED(r, 0) = false; ASKED(r, 1) = false;
#endif
  CALLING(r, 0) = false; CALLING(r, 1) = false
}

/* One conditional write; whoever was overtaken learns it here, and stops. */
inline save(r) {
  if
  :: MAY_SAVE(r) ->
    rule(is_current[r]);                                                               /* a deposed save fails */
    rule(row_decision == NONE || row_decision == Decision_UNDECIDED || row_decision == decision[r]);
    row_decision = decision[r]; row_phase[0] = PHASE(r, 0); row_phase[1] = PHASE(r, 1);
    is_current[1 - r] = false; is_current[r] = true;
    if
    :: IS_FINAL(row_phase[0]) && IS_FINAL(row_phase[1]) -> finished = true; check_end(); forget(r)
    :: else
    fi
  :: else -> forget(r)
  fi
}

inline check_end() {
  effect(state[0] != State_HELD && state[1] != State_HELD);
  effect((row_decision == Decision_CONFIRM) == (state[0] == State_CONFIRMED));
  effect((row_decision == Decision_CONFIRM) == (state[1] == State_CONFIRMED))
}

/* What follows from what is known: decide, turn the branches to Confirm or Cancel, and save what others must know. */
inline advance(r) {
  must_save = false;
  if
  :: decision[r] == Decision_UNDECIDED && (PHASE(r, 0) == BranchPhase_REFUSED || PHASE(r, 1) == BranchPhase_REFUSED) ->
    decision[r] = Decision_CANCEL; must_save = true
  :: decision[r] == Decision_UNDECIDED && MAY_CONFIRM(r) ->
    decision[r] = Decision_CONFIRM; must_save = true
  :: decision[r] == Decision_UNDECIDED && MAY_CONFIRM(r) ->   /* the deadline has passed, or a hold is no longer safe */
    decision[r] = Decision_CANCEL; must_save = true
  :: else
  fi;
  follow(r)
}

inline follow(r) {
  follow_one(r, 0); follow_one(r, 1);
  if
  :: MUST_SAVE(r) -> save(r)
  :: else
  fi
}

inline follow_one(r, b) {
  to = AFTER(decision[r], PHASE(r, b));
  if
  :: to != NONE && !CALLING(r, b) ->
    PHASE(r, b) = to
#ifdef LIVENESS
    ; ASKED(r, b) = false
#endif
  :: else
  fi
}

inline begin(r) {
  begun = true; is_current[r] = true;
  decision[r] = Decision_UNDECIDED; PHASE(r, 0) = BranchPhase_TRYING;
#ifdef SEQUENTIAL
  PHASE(r, 1) = BranchPhase_PENDING;
#else
  PHASE(r, 1) = BranchPhase_TRYING;
#endif
#ifndef MISTAKE_TRY_BEFORE_RECORD
  save(r)
#endif
}

/* The version goes up, which stops whoever had the transaction; then all goes on from the row. */
inline claim(r) {
  is_current[1 - r] = false; is_current[r] = true;
  decision[r] = row_decision; PHASE(r, 0) = row_phase[0]; PHASE(r, 1) = row_phase[1];
  advance(r)
}

inline call(r, b) {
  if
  :: PHASE(r, b) == BranchPhase_PENDING ->
    PHASE(r, b) = BranchPhase_TRYING
#ifndef MISTAKE_PENDING_NOT_SAVED
    ; save(r)
#endif
#ifdef LIVENESS
  :: PHASE(r, b) != BranchPhase_PENDING && ASKED(r, b) -> ASKED(r, b) = false; save(r)
#endif
  :: else ->
    rule(begun && (row_decision != NONE || finished));                  /* the record is durable before a Try */
    rule(OPERATION(r, b) == Operation_TRY || row_decision == decision[r] || finished);      /* and the decision before the rest */
    requests[b] = requests[b] | BIT(OPERATION(r, b)); CALLING(r, b) = true
  fi
}

inline end_call(r, b, answer) {
#ifdef LIVENESS
  ASKED(r, b) = true;
  answers[b] = answers[b] & ~SAID(OPERATION(r, b), answer);
#endif
  PHASE(r, b) = BECOMES(OPERATION(r, b), answer); CALLING(r, b) = false;
  advance(r)
}

inline give_up_call(r, b) {
#ifdef MISTAKE_CONFIRM_GIVEN_UP               /* a Confirm that is not answered is cancelled instead */
  if
  :: PHASE(r, b) == BranchPhase_CONFIRMING ->
    decision[r] = Decision_CANCEL; PHASE(r, b) = BranchPhase_CANCELLING; CALLING(r, b) = false; save(r)
  :: else -> end_call(r, b, Answer_UNANSWERED)
  fi
#else
  end_call(r, b, Answer_UNANSWERED)
#endif
}

#define WORKS(r) (decision[r] != NONE)
#define MAY_TAKE(r, b, answer) (CALLING(r, b) && HEARD(b, OPERATION(r, b), answer))
#ifdef SEQUENTIAL
#define IS_ITS_TURN(r, b) ((b) == 0 || PHASE(r, 0) == BranchPhase_HELD)
#else
#define IS_ITS_TURN(r, b) true
#endif
#ifdef MISTAKE_NO_REPETITION                  /* what was called once is not called again */
#define IS_WANTED(r, b) !ASKED(r, b)
#else
#define IS_WANTED(r, b) true
#endif
#define MAY_CALL(r, b) (WORKS(r) && !CALLING(r, b) && OPERATION(r, b) != NONE && IS_WANTED(r, b) && \
  (OPERATION(r, b) != Operation_TRY || (decision[r] == Decision_UNDECIDED && IS_ITS_TURN(r, b))))
#define MAY_CLAIM(r) (row_decision != NONE && !finished && !WORKS(r))

proctype replica(byte r) {
end:
  do
  :: atomic { IS_UP(r) && r == 0 && !begun -> begin(r) }
  :: atomic { IS_UP(r) && decision[r] == Decision_UNDECIDED ->  /* the deadline has passed, or somebody cancels it */
       decision[r] = Decision_CANCEL; must_save = true; follow(r) }
  :: atomic { IS_UP(r) && MAY_CALL(r, 0) -> call(r, 0) }
  :: atomic { IS_UP(r) && MAY_CALL(r, 1) -> call(r, 1) }
  :: atomic { IS_UP(r) && MAY_TAKE(r, 0, Answer_SUCCEEDED) -> end_call(r, 0, Answer_SUCCEEDED) }
  :: atomic { IS_UP(r) && MAY_TAKE(r, 1, Answer_SUCCEEDED) -> end_call(r, 1, Answer_SUCCEEDED) }
  :: atomic { IS_UP(r) && MAY_TAKE(r, 0, Answer_REFUSED) -> end_call(r, 0, Answer_REFUSED) }
  :: atomic { IS_UP(r) && MAY_TAKE(r, 1, Answer_REFUSED) -> end_call(r, 1, Answer_REFUSED) }
  :: atomic { IS_UP(r) && FAULT && CALLING(r, 0) -> COUNT_FAULT; give_up_call(r, 0) }      /* too early, or lost */
  :: atomic { IS_UP(r) && FAULT && CALLING(r, 1) -> COUNT_FAULT; give_up_call(r, 1) }
  :: atomic { FAULT && WORKS(r) -> COUNT_FAULT; forget(r) }                                /* a crash */
#ifdef LIVENESS
#ifndef MISTAKE_NO_RECOVERY                   /* nobody claims what another left */
  :: atomic { IS_UP(r) && MAY_CLAIM(r) && LEASE_HAS_LAPSED(r) -> claim(r) }
  :: atomic { IS_UP(r) && MAY_CLAIM(r) && FAULT && !LEASE_HAS_LAPSED(r) -> COUNT_FAULT; claim(r) }
#endif
  :: atomic { IS_UP(r) && CALLING(r, 0) && NOTHING_COMES(r, 0) -> give_up_call(r, 0) }
  :: atomic { IS_UP(r) && CALLING(r, 1) && NOTHING_COMES(r, 1) -> give_up_call(r, 1) }
  :: atomic { IS_UP(r) && FAULT && begun && IS_UP(1 - r) -> COUNT_FAULT; frozen[r] = 1 }
  :: atomic { IS_UP(r) && FAULT && begun && IS_UP(1 - r) -> COUNT_FAULT; frozen[r] = 2 }
  :: atomic { frozen[r] == 2 -> frozen[r] = 0 }
#else
  :: atomic { MAY_CLAIM(r) -> claim(r) }
  :: atomic { WORKS(r) -> save(r) }                             /* the lease is renewed: known answers ride along */
  :: atomic { r == 0 && finished && row_decision != NONE ->     /* purged */
       row_decision = NONE; row_phase[0] = NONE; row_phase[1] = NONE }
#endif
  od
}

/* --- participants ------------------------------------------------------------------------------------------------ */

/* One local transaction: handlers and row together. */
inline happen(b, event) {
  ran = RUNS(state[b], event);
  state[b] = THEN(state[b], event);
  if
  :: ran & BIT(Operation_TRY) ->
#ifndef REACQUIRE
    effect(!was_cancelled[b]);                                          /* no hold by a Try after its Cancel */
#endif
    effect(!finished)                                                   /* none after the end */
  :: else
  fi;
  if
  :: ran & BIT(Operation_CONFIRM) -> effect(!has_confirmed[b]); has_confirmed[b] = true   /* exactly once */
  :: else
  fi;
  was_cancelled[b] = was_cancelled[b] || event == Event_CANCEL || event == Event_TOLD_CANCEL;
  ran = 0;
  effect(!(state[0] == State_CONFIRMED && state[1] == State_CANCELLED));
  effect(!(state[1] == State_CONFIRMED && state[0] == State_CANCELLED))
}

inline deliver(b, operation) {
  answers[b] = answers[b] | SAID(operation, REPLY(state[b], operation));
  happen(b, operation)                        /* the events of the calls are numbered as the operations are */
}

inline consume(b, operation) {
#ifdef LIVENESS
  if
  :: requests[b] = requests[b] & ~BIT(operation)
  :: FAULT -> COUNT_FAULT                     /* it comes twice */
  fi
#else
  skip
#endif
}

proctype participant(byte b) {
end:
  do
  :: atomic { requests[b] & BIT(Operation_TRY) -> consume(b, Operation_TRY); deliver(b, Operation_TRY) }
  :: atomic { requests[b] & BIT(Operation_TRY) && state[b] == State_NOTHING ->      /* refused: it leaves nothing behind */
       consume(b, Operation_TRY); answers[b] = answers[b] | SAID(Operation_TRY, Answer_REFUSED) }
  :: atomic { requests[b] & BIT(Operation_CONFIRM) -> consume(b, Operation_CONFIRM); deliver(b, Operation_CONFIRM) }
  :: atomic { requests[b] & BIT(Operation_CANCEL) -> consume(b, Operation_CANCEL); deliver(b, Operation_CANCEL) }
#ifdef LIVENESS
  :: atomic { FAULT && requests[b] & BIT(Operation_TRY) -> COUNT_FAULT; requests[b] = requests[b] & ~BIT(Operation_TRY) }
  :: atomic { FAULT && requests[b] & BIT(Operation_CONFIRM) -> COUNT_FAULT; requests[b] = requests[b] & ~BIT(Operation_CONFIRM) }
  :: atomic { FAULT && requests[b] & BIT(Operation_CANCEL) -> COUNT_FAULT; requests[b] = requests[b] & ~BIT(Operation_CANCEL) }
  :: atomic { FAULT && answers[b] -> COUNT_FAULT; answers[b] = 0 }
#endif
  od
}

/* Looks after holds whose time is up, which may be at any time: asks, and later does what it was told. */
proctype reaper(byte b) {
end:
  do
  :: atomic { FENCE_ASKS(state[b]) && verdict[b] == NONE && TOLD != NONE ->
       rule(row_decision != NONE);            /* of what is held, the coordinator always knows */
       verdict[b] = TOLD }
  :: atomic { verdict[b] == Event_TOLD_CANCEL -> verdict[b] = NONE; happen(b, Event_TOLD_CANCEL) }
#ifdef HARD_LIMIT
  :: atomic { FENCE_ASKS(state[b]) && verdict[b] == NONE -> happen(b, Event_ABANDONED) }
#endif
  od
}

init {
  atomic { run replica(0); run replica(1); run participant(0); run participant(1); run reaper(0); run reaper(1) }
}

#ifdef LIVENESS
ltl ends { <> begun -> <> [] (finished && state[0] != State_HELD && state[1] != State_HELD) }
#endif
