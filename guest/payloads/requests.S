# In place of a Linux kernel: sends the requests that stand behind its code to their devices, and prints
# done. tests/hostile.rs makes them and an ELF file of both. A request is
#	.long device, .short queue, flags, .long features, length, room, 0, .quad room's address
# and so many bytes: a chain of them, and of the room if it has any. Device 0 is the end; its queue is how
# often all is sent: the first time as the flags say, then with a reset of the device before each request,
# whatever it does at that moment.
.include "header.inc"
	.equ SLOTS, 0xc0001000
	.equ SLOTS_END, 0xc0011000
	.equ FRESH, 1			# flag: reset the device and make its queues ready before
	.equ WAIT, 2			# flag: wait some time until all of the queue is used
	.equ RINGS, 0x400000		# of each queue: descriptors, available ring, used ring
	.equ RINGS_SIZE, 0x4000
	.equ MAX_ENTRIES, 32
	.equ POLLS, 60

.code64
.text
	flat_header 64
	cld
# 8 bytes at each address of the first registers, and across the end of each window.
	mov $SLOTS - 8, %ebx
1:	mov (%rbx), %rax
	movq $0, (%rbx)
	inc %ebx
	test $0x40, %ebx
	jz 1b
	add $0xfb8, %ebx
	cmp $SLOTS_END, %ebx
	jb 1b

	xor %r12d, %r12d
pass:	lea requests(%rip), %rsi
request:
	mov (%rsi), %eax
	test %eax, %eax
	jz passed
	movzwl 4(%rsi), %edi
	test %r12d, %r12d
	jnz fresh
	testb $FRESH, 6(%rsi)
	jz post

fresh:	mov $SLOTS, %ebx
1:	cmp %eax, 0x008(%rbx)		# DeviceID
	je 2f
	add $0x1000, %ebx
	cmp $SLOTS_END, %ebx
	jb 1b
	jmp next
2:	movl $0, 0x070(%rbx)		# Status: reset, ACKNOWLEDGE, DRIVER
	movl $1, 0x070(%rbx)
	movl $3, 0x070(%rbx)
	movl $0, 0x024(%rbx)		# these features and VERSION_1
	mov 8(%rsi), %eax
	mov %eax, 0x020(%rbx)
	movl $1, 0x024(%rbx)
	movl $1, 0x020(%rbx)
	movl $0xb, 0x070(%rbx)
	mov $RINGS, %ecx
	xor %edx, %edx
3:	mov %edx, 0x030(%rbx)		# QueueSel
	mov 0x034(%rbx), %eax		# QueueNumMax
	test %eax, %eax
	jz 5f
	cmp $MAX_ENTRIES, %eax
	jbe 4f
	mov $MAX_ENTRIES, %eax
4:	mov %eax, 0x038(%rbx)
	lea -1(%rax), %r14d		# all of a device's queues have it
	mov %ecx, 0x080(%rbx)
	lea 0x1000(%rcx), %eax
	mov %eax, 0x090(%rbx)
	lea 0x2000(%rcx), %eax
	mov %eax, 0x0a0(%rbx)
	movl $0, 0x1000(%rcx)
	movl $0, 0x2000(%rcx)
	movl $1, 0x044(%rbx)
	add $RINGS_SIZE, %ecx
	inc %edx
	jmp 3b
5:	movl $0xf, 0x070(%rbx)

# The next two descriptors of its queue.
post:	mov %edi, %ecx
	shl $14, %ecx
	add $RINGS, %ecx
	movzwl 0x1002(%rcx), %eax
	mov %eax, %edx
	and %r14d, %edx			# in the available ring
	lea (%rdx,%rdx), %r8d
	and %r14d, %r8d			# in the table
	mov %r8d, %r9d
	shl $4, %r9d
	add %rcx, %r9
	lea 32(%rsi), %r10
	mov %r10, (%r9)
	mov 12(%rsi), %r11d
	mov %r11d, 8(%r9)
	movl $0, 12(%r9)
	mov 16(%rsi), %r13d
	test %r13d, %r13d
	jz 2f
	test %r11d, %r11d
	jz 1f
	lea 1(%r8), %r10d
	shl $16, %r10d
	or $1, %r10d			# NEXT
	mov %r10d, 12(%r9)
	add $16, %r9
1:	mov 24(%rsi), %r10
	mov %r10, (%r9)
	mov %r13d, 8(%r9)
	movl $2, 12(%r9)		# WRITE
2:	mov %r8w, 0x1004(%rcx,%rdx,2)
	inc %eax
	mov %ax, 0x1002(%rcx)
	mov %edi, 0x050(%rbx)		# QueueNotify

	test %r12d, %r12d
	jnz next
	testb $WAIT, 6(%rsi)
	jz next
	mov $POLLS, %edx
3:	cmp %ax, 0x2002(%rcx)
	je next
	testb $0x40, 0x070(%rbx)	# DEVICE_NEEDS_RESET
	jnz next
	dec %edx
	jnz 3b
next:	mov 12(%rsi), %eax
	lea 32(%rsi,%rax), %rsi
	jmp request

passed:	inc %r12d
	cmp 4(%rsi), %r12w
	jb pass
	lea done(%rip), %rsi
	mov $4, %ecx
	mov $0x3f8, %dx
1:	outsb
	loop 1b
1:	pause
	jmp 1b

done:	.ascii "done"
requests:
