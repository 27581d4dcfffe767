from trec_semid.training.selection import Selection


def decisions(metric, patience, values):
    selection = Selection(metric, patience)
    return [
        (selection.is_better(step, value), selection.is_over) for step, value in enumerate(values, 1)
    ], selection


def test_the_highest_auc_wins_and_patience_counts_from_it():
    found, selection = decisions("auc", 2, [0.6, 0.7, 0.65, 0.7])
    assert found == [(True, False), (True, False), (False, False), (False, True)]
    assert (selection.best_step, selection.best_value) == (2, 0.7)


def test_the_lowest_log_loss_wins():
    found, selection = decisions("log_loss", 1, [0.6, 0.5, 0.55])
    assert found == [(True, False), (True, False), (False, True)]
    assert selection.best_value == 0.5


def test_after_a_restart_the_next_value_is_the_best_so_far():
    _, selection = decisions("auc", 2, [0.7, 0.6])
    selection.restart()
    assert selection.is_better(3, 0.5)
    assert (selection.best_step, selection.num_waited) == (3, 0)
    assert not selection.is_better(4, 0.4)


def test_a_loaded_selection_goes_on_as_the_saved_one():
    _, saved = decisions("gauc", 2, [0.6, 0.5])
    loaded = Selection("gauc", 2)
    loaded.load_state_dict(saved.state_dict())
    assert loaded == saved
