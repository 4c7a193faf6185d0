%% A call whose line a test knows: `stacks_marks:lines/0` tells the line of each mark that was passed.
-define(AT(Mark, Call), begin stacks_marks:pass(Mark, ?LINE), Call end).
